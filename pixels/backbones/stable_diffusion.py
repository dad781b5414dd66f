"""Stable Diffusion 1.x and 2.x, SDXL base, SDXL base then refiner, and the SDXL refiner alone (the released demo)."""

from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from common.pipelines import Conditioning, decode_latents, encode_image, warn_of_lost_words
from pixels.backbones.backbone import Backbone, select_timesteps
from pixels.backbones.loading import Model
from pixels.options import Sampling

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what diffusers tells SDXL's refiner


def bind_stable_diffusion(model: Model, sampling: Sampling, size: tuple[int, int], batch: int) -> Backbone:
    """The model told what to do, as backbones.bind. With a second stage the refiner's network takes over after
    refiner_start, a fraction of the schedule, in the same loop and on the same latents."""
    pipe, guidance_scale = model.pipe, sampling.guidance_scale
    guided = guidance_scale > 1
    conds = [conditionings(stage, sampling, size, batch) for stage in model.stages]
    batches = [Conditioning.cat(uncond, cond) if guided else cond for uncond, cond in conds]
    training_steps = model.scheduler.config.num_train_timesteps
    hand_over = round(training_steps - sampling.refiner_start * training_steps) if len(model.stages) > 1 else 0

    def predict(z: Tensor, t: Tensor) -> Tensor:
        stage = 1 if hand_over and t < hand_over else 0  # asked only with two stages: a GPU waits for the answer
        unet, batch = model.stages[stage].unet, batches[stage]
        z = model.scheduler.scale_model_input(torch.cat([z, z]) if guided else z, t)
        output = unet(z, t, encoder_hidden_states=batch.embeds, added_cond_kwargs=batch.added, return_dict=False)[0]
        if guided:
            uncond, cond = output.chunk(2)
            output = uncond + guidance_scale * (cond - uncond)
        return output

    discarded = ()
    if model.kind != "sd":  # a sample of the source, never used; then noise, unless denoising_start is given
        discarded = (torch.float32 if pipe.vae.config.force_upcast else pipe.vae.dtype,)
        discarded += (pipe.unet.dtype,) if sampling.denoising_start is None else ()
    return Backbone(model.scheduler, lambda: select_timesteps(model.scheduler, pipe.device, sampling),
                    partial(encode_image, pipe), predict, partial(decode_latents, pipe), pipe.vae_scale_factor,
                    pipe.device, discarded)  # fmt: skip


def conditionings(
    pipe: DiffusionPipeline, sampling: Sampling, size: tuple[int, int], batch: int
) -> tuple[Conditioning, Conditioning]:
    """(unconditional, conditional), through the pipeline's own encode_prompt.

    Unlike common.pipelines.encode_prompt, an empty prompt is really encoded, as diffusers does: only a negative prompt
    that was not given becomes null text, all zeros where SDXL's config asks for that.
    """
    prompt, negative = sampling.prompt, sampling.negative_prompt
    for text in [prompt, *([] if negative is None else [negative])]:
        warn_of_lost_words(getattr(pipe, "tokenizer", None) or pipe.tokenizer_2, text)
    cond, uncond, *pooled = pipe.encode_prompt(
        [prompt] * batch, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True,
        negative_prompt=None if negative is None else [negative] * batch,
    )  # fmt: skip
    if not pooled:
        return Conditioning(uncond), Conditioning(cond)

    def told(embeds: Tensor, pooled_text: Tensor, score: float) -> Conditioning:
        ids = [*size, 0, 0, *([score] if pipe.config.get("requires_aesthetics_score") else size)]
        time_ids = torch.tensor([ids], dtype=pooled_text.dtype, device=pooled_text.device).repeat(batch, 1)
        return Conditioning(embeds, {"text_embeds": pooled_text, "time_ids": time_ids})

    return told(uncond, pooled[1], NEGATIVE_AESTHETIC_SCORE), told(cond, pooled[0], AESTHETIC_SCORE)
