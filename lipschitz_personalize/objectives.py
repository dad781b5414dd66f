"""The denoising objective of each backbone: Stable Diffusion 1.x and 2.x (noise or velocity), SDXL, SD3 (flow
matching).

A pipeline is diffusers' own. What differs between backbones is told here and nowhere else: text to conditioning, the
noise levels, what the network is to predict, and its call.
"""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from common.flags import chosen_device
from common.model_files import PIPELINES, find_folder, inspect_folder, load_whole
from common.pipelines import Conditioning, load_pipeline, warn_of_lost_words, without_overflow
from common.pipelines import encode_prompt as encode_sd_prompt
from common.runs import InputError
from common.training import noised, target

SD3 = StableDiffusion3Pipeline.__name__
SD3_MODELS = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModelWithProjection,
              "text_encoder_2": CLIPTextModelWithProjection, "text_encoder_3": T5EncoderModel}  # fmt: skip


def load_backbone(name: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32):
    """The pipeline of "picturebook", a local folder or a hub id: SD 1.x, 2.x, SDXL or SD3; frozen, in eval mode."""
    accepted = PIPELINES | {SD3: StableDiffusion3Pipeline}
    folder = find_folder(name, accepted)
    pipeline_class, parts = inspect_folder(folder, accepted, SD3_MODELS)
    if pipeline_class is not StableDiffusion3Pipeline:
        return load_pipeline(name, device, dtype)
    without = {} if "text_encoder_3" in parts else {"text_encoder_3": None, "tokenizer_3": None}
    return load_whole(folder, accepted, SD3_MODELS, dtype, **without).to(chosen_device(device))


def backbone_of(pipe) -> str:
    """ "sd", "sdxl" or "sd3"."""
    if isinstance(pipe, StableDiffusion3Pipeline):
        return "sd3"
    return "sdxl" if getattr(pipe, "text_encoder_2", None) is not None else "sd"


def network(pipe) -> torch.nn.Module:
    """The denoising network: SD3's transformer, otherwise the UNet."""
    return pipe.transformer if backbone_of(pipe) == "sd3" else pipe.unet


def chosen_resolution(pipe, resolution: int | None) -> int:
    """--resolution, or the model's own. InputError for one that its latents, or diffusers (8 pixels), refuse."""
    config, unit = network(pipe).config, pipe.vae_scale_factor
    least = max(8, unit * config.patch_size if backbone_of(pipe) == "sd3" else unit)  # SD3 takes latents in patches
    if resolution and resolution % least:
        raise InputError(f"--resolution {resolution} is no multiple of this model's {least} pixels")
    return resolution or config.sample_size * unit


# ------------------------------------------------------------------------------------------------------ conditioning


def encode_text(pipe, prompts: list[str], resolution: int | None = None) -> Conditioning:
    """Prompts to what the network is told; differentiable in the text encoders. resolution: that SDXL is told (its own
    by default). SD3: added is {"pooled_projections": [B, P]}."""
    if backbone_of(pipe) != "sd3":
        return encode_sd_prompt(pipe, prompts, (resolution, resolution) if resolution else None)
    for text in prompts:
        warn_of_lost_words(pipe.tokenizer, text)
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, device=pipe.device, max_sequence_length=77, do_classifier_free_guidance=False
    )  # as diffusers' DreamBooth of SD3
    return Conditioning(embeds, {"pooled_projections": pooled})


@torch.no_grad()
def encode_pictures(pipe, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B,3,H,W] in [0,1] to scaled latents float32 [B,C,h,w], a sample of the VAE's posterior. InputError for
    sides that are no multiple of the VAE's factor."""
    factor, config = pipe.vae_scale_factor, pipe.vae.config
    if pictures.shape[2] % factor or pictures.shape[3] % factor:
        raise InputError(f"pictures of {pictures.shape[3]} pixels do not fit: the side must be a multiple of {factor}")
    with without_overflow(pipe.vae) as vae:
        posterior = vae.encode((pictures * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    return ((posterior.sample(generator) - (config.shift_factor or 0)) * config.scaling_factor).float()


# --------------------------------------------------------------------------------------------------- noise and targets


@dataclass(frozen=True, eq=False)
class Noisy:
    """z [B,C,h,w] at timestep t [B]; the network is to say `target`, and the squared error counts `weight` [B]."""

    z: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor


def add_noise(pipe, latents: Tensor, generator: torch.Generator, precondition_outputs: bool = True) -> Noisy:
    """Clean latents [B,C,h,w] to a random noise level each; noise first, then levels, from the CPU generator. SD and
    SDXL: t uniform. SD3: levels logit-normal on the scheduler's table. precondition_outputs: see at_level."""
    noise, count = torch.randn(latents.shape, generator=generator).to(latents), len(latents)
    levels = pipe.scheduler.config.num_train_timesteps
    if backbone_of(pipe) == "sd3":
        share = torch.sigmoid(torch.randn(count, generator=generator))
        places = (share * levels).long().clamp(max=levels - 1)
    else:
        places = torch.randint(levels, (count,), generator=generator)
    return at_level(pipe, latents, noise, places, precondition_outputs)


def at_level(pipe, latents: Tensor, noise: Tensor, places: Tensor, precondition_outputs: bool = True) -> Noisy:
    """Clean latents [B,C,h,w] at the places [B] of the scheduler's table of training levels. SD and SDXL: DDPM noise,
    target by the scheduler's prediction type. SD3: the (shifted) table goes down, z = (1 - sigma) x + sigma n, target
    n - x. precondition_outputs: SD3's error is taken in x, so that it counts sigma^2, as in diffusers' DreamBooth
    script, from which the official one comes."""
    if backbone_of(pipe) != "sd3":
        t, alpha_bar = places.to(latents.device), pipe.scheduler.alphas_cumprod
        wanted = target(pipe.scheduler.config.prediction_type, alpha_bar, latents, noise, t)
        return Noisy(noised(alpha_bar, latents, noise, t), t, wanted, torch.ones(len(t), device=latents.device))
    table = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)  # sampling rewrites the pipe's own
    sigma, t = table.sigmas[places].to(latents), table.timesteps[places].to(latents.device)
    level = sigma.reshape(-1, 1, 1, 1)
    weight = sigma**2 if precondition_outputs else torch.ones_like(sigma)
    return Noisy((1 - level) * latents + level * noise, t, noise - latents, weight)


def random_noisy(
    pipe, share: float, generator: torch.Generator, latents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(z [1,C,h,w], t [1]) at the noise level `share` (0 to 1) of the way up the training timesteps. latents: clean
    ones; standard normal ones by default."""
    config, last = network(pipe).config, pipe.scheduler.config.num_train_timesteps - 1
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    clean = torch.randn(shape, generator=generator) if latents is None else latents.cpu()
    noise = torch.randn(clean.shape, generator=generator).to(pipe.device)
    place = round((1 - share if backbone_of(pipe) == "sd3" else share) * last)
    found = at_level(pipe, clean.to(pipe.device), noise, torch.tensor([place]))
    return found.z, found.t


def predict(pipe, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """The network's own output at (z, t): noise or velocity, [B,C,h,w]."""
    net = network(pipe)
    z = z.to(net.dtype)
    if backbone_of(pipe) == "sd3":
        return net(hidden_states=z, timestep=t, encoder_hidden_states=cond.embeds, return_dict=False, **cond.added)[0]
    return net(z, t, encoder_hidden_states=cond.embeds, added_cond_kwargs=cond.added, return_dict=False)[0]


def denoising_loss(pipe, batch, args, generator: torch.Generator) -> Tensor:
    """Eq. 2, the first term of Alg. 1, on a batch (batches.Batch): a scalar. With prior preservation DreamBooth's
    second term too."""
    noisy = add_noise(pipe, batch.latents, generator, args.precondition_outputs)  # z_t and eps, at a random t
    prediction = predict(pipe, noisy.z, noisy.t, batch.cond)  # eps_theta(z_t, t, c)
    error = squared_error(prediction, noisy, batch.mask, args.mask_loss == "sum")  # ||eps - eps_theta(z_t, t, c)||^2
    loss = error[: batch.instances].mean()
    if args.with_prior_preservation:
        loss = loss + args.prior_loss_weight * error[batch.instances :].mean()  # the class pictures
    return loss


def squared_error(prediction: Tensor, noisy: Noisy, mask: Tensor | None = None, sum_channels: bool = False) -> Tensor:
    """The loss of each picture [B]: the mean squared error; of the first b pictures that inside of mask [b,1,h,w].
    sum_channels: there the channels are summed and only places averaged, C times the mean, as in Custom Diffusion's
    code, which divides by the sum of a mask of one channel."""
    error = (prediction.float() - noisy.target.float()).square()
    loss = error.mean((1, 2, 3))
    if mask is not None:
        masked = error[: len(mask)]
        masked = masked.sum(1, keepdim=True) if sum_channels else masked.mean(1, keepdim=True)
        masked = (masked * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
        loss = torch.cat([masked, loss[len(mask) :]])
    return noisy.weight * loss
