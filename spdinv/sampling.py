"""The way back: one sampling step with classifier-free guidance, which inversions' own steps are variations of."""

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_step, guide
from common.pipelines import Conditioning, encode_prompt, predict_noise
from spdinv.inversions.result import Inversion


@dataclass(frozen=True, eq=False)
class Drawing:
    """What all sampling steps of one drawing share. uncond, cond: texts of the P branches, the source first.
    guidance_scale: one for all branches, or [P,1,1,1]."""

    pipe: DiffusionPipeline
    schedule: Schedule
    inversion: Inversion
    uncond: Conditioning
    cond: Conditioning
    guidance_scale: float | torch.Tensor

    @property
    def steps(self) -> int:
        return len(self.schedule.timesteps)

    def step(self, z: torch.Tensor, step: int) -> torch.Tensor:
        """z [P,4,h,w] after sampling step 0 ... T-1, as the inversion takes it: its own step, or the guided one."""
        return (self.inversion.step or guided_step)(self, z, step)

    def level_after(self, step: int) -> torch.Tensor:
        """The inversion's latent [1,4,h,w] at the level that sampling step 0 ... T-1 leads to."""
        return self.inversion.trajectory[self.steps - 1 - step]


def start(
    pipe: DiffusionPipeline, schedule: Schedule, inversion: Inversion, prompts: list[str], guidance_scale: float,
    source_guidance_scale: float | None = None,
) -> tuple[Drawing, torch.Tensor]:  # fmt: skip
    """A drawing of one branch per prompt, with null texts, and its z_T: the inverted noise, [len(prompts),4,h,w].
    source_guidance_scale: of the first branch, where it is another."""
    if len(inversion.noise) != 1:
        raise ValueError(f"engines edit one picture at a time, but {len(inversion.noise)} were inverted together")
    z = inversion.noise.expand(len(prompts), -1, -1, -1)
    scale: float | torch.Tensor = guidance_scale
    if source_guidance_scale is not None:
        scale = torch.tensor([source_guidance_scale] + [guidance_scale] * (len(z) - 1)).to(z).reshape(-1, 1, 1, 1)
    uncond, cond = encode_prompt(pipe, [""] * len(prompts)), encode_prompt(pipe, prompts)
    return Drawing(pipe, schedule, inversion, uncond, cond, scale), z


def unconditional(drawing: Drawing, step: int) -> Conditioning:
    """What the unconditional half is told at sampling step 0 ... T-1: the inversion's finding in place of "", if any.
    An embedding of one picture [1, L, D] serves all its branches; one per branch is taken as it is."""
    uncond, inversion = drawing.uncond, drawing.inversion
    if inversion.uncond_embeds is not None:
        uncond = uncond.with_embeds(inversion.uncond_embeds[step].to(uncond.embeds).expand_as(uncond.embeds))
    if inversion.uncond_pooled is not None:
        text = uncond.added["text_embeds"]
        pooled = inversion.uncond_pooled.to(text).expand_as(text)
        uncond = Conditioning(uncond.embeds, {**uncond.added, "text_embeds": pooled})
    return uncond


def predict_pair(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, t: int, uncond: Conditioning, cond: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """eps_uncond and eps_cond, each [P,4,h,w] as z, from one UNet call at timestep t on the batch
    [uncond_src, uncond_tgt, cond_src, cond_tgt], as in all Prompt-to-Prompt code."""
    return predict_noise(pipe, schedule, torch.cat([z, z]), t, Conditioning.cat(uncond, cond)).chunk(2)


def predict_both(drawing: Drawing, z: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """predict_pair for the branches z [P,4,h,w] at sampling step 0 ... T-1."""
    t, uncond = drawing.schedule.timesteps[step], unconditional(drawing, step)
    return predict_pair(drawing.pipe, drawing.schedule, z, t, uncond, drawing.cond)


def correct(drawing: Drawing, z: torch.Tensor, step: int) -> torch.Tensor:
    """z [P,4,h,w] after sampling step 0 ... T-1; where the inversion has corrections, which lead the source branch back
    to its trajectory, with the trajectory in its place. (The sum would be that too, but for the rounding of two
    different batches, which guidance multiplies at every step.)"""
    return z if drawing.inversion.corrections is None else torch.cat([drawing.level_after(step), z[1:]])


def guided_step(drawing: Drawing, z: torch.Tensor, step: int) -> torch.Tensor:
    """UNet, classifier-free guidance, scheduler, in this order, for sampling step 0 ... T-1; z [P,4,h,w]."""
    eps = guide(*predict_both(drawing, z, step), drawing.guidance_scale)
    return correct(drawing, ddim_step(drawing.schedule, z, eps, drawing.schedule.timesteps[step]), step)


def guided_noise(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, t: int, uncond: Conditioning, cond: Conditioning,
    guidance_scale: float,
) -> torch.Tensor:  # fmt: skip
    """eps [B,4,h,w] with classifier-free guidance, for B pictures at timestep t; at scale 1 only `cond` is asked."""
    if guidance_scale == 1:
        return predict_noise(pipe, schedule, z, t, cond)
    return guide(*predict_pair(pipe, schedule, z, t, uncond, cond), guidance_scale)


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline, schedule: Schedule, noise: torch.Tensor, cond: Conditioning, guidance_scale: float
) -> torch.Tensor:
    """DDIM sampling of B pictures from `noise` [B,4,h,w], every latent kept, in the order of an inversion's trajectory:
    [T+1,B,4,h,w], z_0 first, the noise last."""
    uncond, latents = encode_prompt(pipe, [""])[[0] * len(cond)], [noise]
    for t in tqdm(schedule.timesteps, "drawing", leave=False, disable=None):
        eps = guided_noise(pipe, schedule, latents[-1], t, uncond, cond, guidance_scale)
        latents.append(ddim_step(schedule, latents[-1], eps, t))
    return torch.stack(latents[::-1])
