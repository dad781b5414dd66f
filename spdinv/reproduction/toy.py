"""A model whose network is exact: the posterior mean over drawn pictures, in closed form, nothing trained.

Latents are picture-book scenes, shrunk to 16x16 and scaled to mean 0 and variance 1; the data are Gaussians of width
`width` around them. A prompt admits the scenes that it fits; "" admits all. Then

    E[x_0 | x, c] = sum_i w_i (m_i + g (x - sqrt(a) m_i)),   w = softmax(-|x - sqrt(a) m_i|^2 / (2 v)) over admitted i
    v = a width^2 + 1 - a,   g = sqrt(a) width^2 / v,   eps(x, t, c) = (x - sqrt(a) E[x_0 | x, c]) / sqrt(1 - a)

It stands in for a pipeline, so that inversions can be watched where any gap that is left is their own.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from common.ddim import Schedule, make_schedule

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
             "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "epsilon"}  # fmt: skip


class ExactUnet(torch.nn.Module):
    """eps(x [B,C,h,w], t, c); c [B,1,N] is 1 for the latents [N,C,h,w] that the prompt admits."""

    attn_processors: dict = {}

    def __init__(self, latents: torch.Tensor, schedule: Schedule, width: float):
        super().__init__()
        self.latents, self.schedule, self.width, self.dtype = latents, schedule, width, latents.dtype
        self.calls = 0  # latents shown to the network

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs=None, return_dict=False):
        self.calls += len(x)
        a = self.schedule.alpha_bar_at(int(t)).to(x.dtype)
        v = a * self.width**2 + 1 - a
        means = a**0.5 * self.latents
        distance = torch.cdist(x.flatten(1), means.flatten(1)).square()  # [B, N]
        w = (-distance / (2 * v) + encoder_hidden_states[:, 0].log()).softmax(1)
        nearest = torch.einsum("bn,nchw->bchw", w, self.latents)
        x_0 = nearest + a**0.5 * self.width**2 / v * (x - a**0.5 * nearest)
        return ((x - a**0.5 * x_0) / (1 - a) ** 0.5,)

    def set_attn_processor(self, processors) -> None:
        """There is no attention to control."""


def scenes(count: int) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Drawn scenes of one thing: pictures [count,3,16,16], and what is said of each."""
    from common.images import to_tensor
    from common.picturebook.drawing import draw
    from common.picturebook.scenes import sample_scene

    pictures, said = [], []
    for seed in range(count):
        scene = sample_scene(seed, counts=(1.0, 0.0, 0.0), marked=0.0)
        pictures.append(F.avg_pool2d(to_tensor(draw(scene).picture), 4))
        thing = scene.things[0]
        said.append({"kind": thing.kind, "color": thing.color, "background": scene.background, "style": scene.style})
    return torch.cat(pictures), said


def toy_pipeline(count: int = 2000, width: float = 0.2, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """A stand-in for a pipeline over `count` scenes; beside what inversions ask for it has latents, said, decode(z)
    and schedule(T). Prompts are words separated by spaces: kinds, colours, backgrounds; words that it does not know say
    nothing. In float64, so that what is left of a search is not rounding."""
    pictures, said = scenes(count)
    mean, deviation = pictures.mean(), pictures.std()
    latents = ((pictures - mean) / deviation).to(dtype)
    unet = ExactUnet(latents, make_schedule(SCHEDULER, 50), width)
    known = {value for one in said for value in one.values()}

    def encode_prompt(prompts: list[str], **options):
        asked = [set(prompt.split(" ")) & known for prompt in prompts]
        fits = [[float(words <= set(one.values())) for one in said] for words in asked]
        for prompt, row in zip(prompts, fits, strict=True):
            if not any(row):
                raise ValueError(f"none of the {count} scenes fits {prompt!r}")
        return torch.tensor(fits, dtype=dtype)[:, None], None

    return SimpleNamespace(
        unet=unet, latents=latents, said=said, encode_prompt=encode_prompt, tokenizer=tokenizer, device="cpu",
        decode=lambda z: (z.float() * deviation + mean).clamp(0, 1), schedule=lambda T: make_schedule(SCHEDULER, T),
    )  # fmt: skip


def tokenizer(text, **options):
    return {"offset_mapping": []}


tokenizer.model_max_length = 77


if __name__ == "__main__":  # the picture of the README: a drawn picture's way from known noise, and three inversions'
    from common.pipelines import encode_prompt
    from spdinv.inversions import INVERSIONS
    from spdinv.reproduction.experiments import draw
    from spdinv.sampling import generate

    pipe = toy_pipeline()
    schedule, cond = pipe.schedule(50), encode_prompt(pipe, ["car"])
    noise = torch.randn(1, *pipe.latents.shape[1:], generator=torch.Generator().manual_seed(0)).to(pipe.latents)
    true = generate(pipe, schedule, noise, cond, 1.0)
    found = {INVERSIONS[name].title: INVERSIONS[name](pipe, schedule, true[0], cond).trajectory.numpy()
             for name in ("ddim", "spd", "exact")}  # fmt: skip
    draw.save(draw.mechanism(true.numpy(), found), Path(__file__).parents[2] / "assets" / "spdinv.png")
