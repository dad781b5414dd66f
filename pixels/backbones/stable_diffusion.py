"""Stable Diffusion 1.x and 2.x, SDXL base, SDXL base then refiner, and the SDXL refiner alone (the released demo)."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from common.pipelines import Conditioning, decode_latents, encode_image, warn_of_lost_words
from common.runs import InputError
from pixels.backbones.backbone import Backbone, select_timesteps
from pixels.backbones.loading import Model

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what diffusers tells SDXL's refiner


def bind_stable_diffusion(
    model: Model,
    prompts: list[str],
    size: tuple[int, int],
    negative_prompts: list[str] | None = None,
    guidance_scale: float = 5.0,
    num_inference_steps: int = 50,
    strength: float = 1.0,
    denoising_start: float | None = None,
    refiner_start: float = 0.8,
) -> Backbone:
    """The model told what to do, for a batch of len(prompts) pictures of `size` (height, width).

    negative_prompts None: null text, all zeros where SDXL's config asks for that; a list, even of "", is encoded.
    guidance_scale: 1 or less runs the prompt alone. refiner_start: with a second stage, the fraction of the schedule
    after which the refiner's network takes over, in the same loop and on the same latents.
    """
    pipe = model.pipe
    conds = [conditionings(stage, prompts, negative_prompts, size) for stage in model.stages]
    guided = guidance_scale > 1
    batches = [Conditioning.cat(uncond, cond) if guided else cond for uncond, cond in conds]
    training_steps = model.scheduler.config.num_train_timesteps
    hand_over = round(training_steps - refiner_start * training_steps) if len(model.stages) > 1 else 0

    def predict(z: Tensor, t: Tensor) -> Tensor:
        stage = 1 if hand_over and t < hand_over else 0  # asked only with two stages: a GPU waits for the answer
        unet, batch = model.stages[stage].unet, batches[stage]
        z = model.scheduler.scale_model_input(torch.cat([z, z]) if guided else z, t)
        output = unet(z, t, encoder_hidden_states=batch.embeds, added_cond_kwargs=batch.added, return_dict=False)[0]
        if guided:
            uncond, cond = output.chunk(2)
            output = uncond + guidance_scale * (cond - uncond)
        return output

    is_sdxl = model.kind != "sd"
    upcast = is_sdxl and pipe.vae.config.force_upcast
    first = (torch.float32 if upcast else pipe.vae.dtype,) if is_sdxl else ()  # a sample of the source, never used
    return Backbone(
        scheduler=model.scheduler,
        start=lambda: select_timesteps(model.scheduler, pipe.device, num_inference_steps, strength, denoising_start),
        encode=lambda picture, sample, generator: encode_image(pipe, picture, sample, generator),
        predict=predict,
        decode=lambda latents: decode_latents(pipe, latents),
        factor=pipe.vae_scale_factor,
        device=pipe.device,
        discarded_draws=first + ((pipe.unet.dtype,) if is_sdxl and denoising_start is None else ()),
    )


def conditionings(
    pipe: DiffusionPipeline, prompts: list[str], negative_prompts: list[str] | None, size: tuple[int, int]
) -> tuple[Conditioning, Conditioning]:
    """(unconditional, conditional), through the pipeline's own encode_prompt.

    Unlike common.pipelines.encode_prompt, an empty prompt is really encoded, as diffusers does: only a negative prompt
    that was not given becomes SDXL's zeros.
    """
    if negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts and {len(negative_prompts)} negative prompts: equally many are needed"
        )
    for text in [*prompts, *(negative_prompts or [])]:
        warn_of_lost_words(getattr(pipe, "tokenizer", None) or pipe.tokenizer_2, text)
    cond, uncond, *pooled = pipe.encode_prompt(
        prompts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True,
        negative_prompt=negative_prompts,
    )  # fmt: skip
    if not pooled:
        return Conditioning(uncond), Conditioning(cond)
    asks_for_score = pipe.config.get("requires_aesthetics_score", False)

    def added(pooled_text: Tensor, score: float) -> dict[str, Tensor]:
        ids = [*size, 0, 0, score] if asks_for_score else [*size, 0, 0, *size]
        time_ids = torch.tensor([ids], dtype=pooled_text.dtype, device=pooled_text.device).repeat(len(prompts), 1)
        return {"text_embeds": pooled_text, "time_ids": time_ids}

    pooled_cond, pooled_uncond = pooled
    return (
        Conditioning(uncond, added(pooled_uncond, NEGATIVE_AESTHETIC_SCORE)),
        Conditioning(cond, added(pooled_cond, AESTHETIC_SCORE)),
    )
