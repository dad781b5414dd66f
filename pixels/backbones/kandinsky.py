"""Kandinsky 2.2: a network told by an image embedding, which a prior draws from text or CLIP takes from a picture."""

import inspect

import torch
from torch import Tensor

from common.images import to_pil
from common.pipelines import warn_of_lost_words
from common.runs import InputError
from pixels.backbones.backbone import Backbone, Generators, select_timesteps
from pixels.backbones.loading import Model
from pixels.options import Sampling


def bind_kandinsky(model: Model, sampling: Sampling, batch: int, seed: int, exemplar: Tensor | None) -> Backbone:
    """The decoder told what to do, as backbones.bind; the size of the pictures does not matter to it. Released: both
    embeddings are the prior's drawings, on ""."""
    pipe, guided = model.pipe, sampling.guidance_scale > 1
    with torch.no_grad():
        cond, uncond = embeddings(model, sampling, batch, seed, exemplar)
    embeds = (torch.cat([uncond, cond]) if guided else cond).to(pipe.device, pipe.unet.dtype)
    takes = inspect.signature(type(model.scheduler).__init__).parameters  # configs keep what other classes had
    learned = "variance_type" in takes and model.scheduler.config.variance_type in ("learned", "learned_range")

    def predict(z: Tensor, t: Tensor) -> Tensor:
        z = model.scheduler.scale_model_input(torch.cat([z, z]) if guided else z, t)
        output = pipe.unet(z, t, encoder_hidden_states=None, added_cond_kwargs={"image_embeds": embeds},
                           return_dict=False)[0]  # fmt: skip
        eps, variance = output.chunk(2, dim=1)
        if guided:  # of the noise alone; the variance is the conditional one
            eps_uncond, eps_cond = eps.chunk(2)
            eps, variance = eps_uncond + sampling.guidance_scale * (eps_cond - eps_uncond), variance.chunk(2)[1]
        return torch.cat([eps, variance], dim=1) if learned else eps

    def encode(picture: Tensor, sample: bool, generator: Generators) -> Tensor:
        """Continuous latents, before quantisation and without a scaling factor; there is nothing to sample."""
        return pipe.movq.encode((picture * 2 - 1).to(pipe.device, pipe.movq.dtype)).latents

    def decode(latents: Tensor) -> Tensor:
        picture = pipe.movq.decode(latents.to(pipe.movq.dtype), force_not_quantize=True).sample
        return (picture.float() / 2 + 0.5).clamp(0, 1)

    return Backbone(model.scheduler, lambda: select_timesteps(model.scheduler, pipe.device, sampling), encode, predict,
                    decode, pipe.movq_scale_factor, pipe.device)  # fmt: skip


def embeddings(
    model: Model, sampling: Sampling, batch: int, seed: int, exemplar: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(conditional, unconditional) image embeddings [B, D]: drawn by the prior, or of the exemplar [B, 3, H, W]."""
    prior, negative = model.prior, sampling.negative_prompt or ""
    if prior is None:
        raise InputError("Kandinsky 2.2 needs its prior: give --prior_model_name_or_path")
    for text in (sampling.prompt, negative):
        warn_of_lost_words(prior.tokenizer, text)
    prior.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    drawn = prior([sampling.prompt] * batch, negative_prompt=[negative] * batch, generator=generator)
    if sampling.image_embedding == "prior":
        return drawn.image_embeds, drawn.negative_image_embeds
    shown, encoder = [to_pil(picture, rounding="nearest") for picture in exemplar], prior.image_encoder
    pixels = prior.image_processor(shown, return_tensors="pt").pixel_values.to(encoder.device, encoder.dtype)
    return encoder(pixels).image_embeds, drawn.negative_image_embeds
