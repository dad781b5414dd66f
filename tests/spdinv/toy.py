"""What the tests of this folder start from: a pipeline whose network is one line of algebra, in float64, so that a test
can differentiate it by hand; and random noise to draw from with a small real network."""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from common.ddim import make_schedule
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions.result import Inversion
from spdinv.reproduction.toy import SCHEDULER, tokenizer
from spdinv.sampling import Drawing
from tests.small_data import random

MEANS = {"": -0.3, "a cat": 0.1, "a dog": 0.7}  # of the embeddings of the prompts that the toy knows
WEIGHT = np.random.default_rng(0).normal(size=(4, 4)) * 0.5
LATENTS = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, 5, 6)))
TOLD = [0.1, -0.4, 0.8]  # means of the three latents' prompts
PROMPTS = ["a red cat on grass", "a blue cat on the grass"]


class ToyUnet(torch.nn.Module):
    """eps = squash(weight z + t / 1000 + mean of the prompt's embedding), mixing channels pixel by pixel."""

    attn_processors: dict = {}  # it has no attention to control

    def __init__(self, weight, squash=torch.tanh):
        super().__init__()
        self.weight, self.squash = torch.nn.Parameter(torch.as_tensor(weight)), squash
        self.calls, self.gradients = [], []  # images of each call, timesteps; images of each backward pass
        self.dtype = self.weight.dtype

    def forward(self, z, t, encoder_hidden_states, added_cond_kwargs=None, return_dict=False):
        self.calls.append((len(z), int(t)))
        shift = t / 1000 + encoder_hidden_states.mean((1, 2))[:, None, None, None]
        output = self.squash(torch.einsum("oc,bchw->bohw", self.weight, z) + shift)
        if torch.is_grad_enabled():
            output.register_hook(lambda gradient: self.gradients.append(len(gradient)))
        return (output,)

    def set_attn_processor(self, processors):
        assert processors == {}


def naive_eps(z, t, mean):
    """The same of one image [4,h,w] or several, in numpy."""
    return np.tanh(np.einsum("oc,...chw->...ohw", WEIGHT, z) + t / 1000 + mean)


def coefficients(schedule, t):
    """C1 and C2 of Eq. 1."""
    a_t = float(schedule.alpha_bar[t])
    a_s = float(schedule.alpha_bar[t - schedule.stride]) if t >= schedule.stride else schedule.final_alpha_bar
    return (a_t / a_s) ** 0.5, a_t**0.5 * ((1 / a_t - 1) ** 0.5 - (1 / a_s - 1) ** 0.5)


def toy_pipe(weight=WEIGHT, squash=torch.tanh):
    unet = ToyUnet(weight, squash)

    def encode_prompt(prompts, **options):
        return toy_cond([MEANS[text] for text in prompts]).embeds.to(unet.dtype), None

    return SimpleNamespace(unet=unet, tokenizer=tokenizer, encode_prompt=encode_prompt, device="cpu")


def toy_schedule(steps):
    return make_schedule(SCHEDULER, steps)


def toy_cond(means):
    return Conditioning(torch.tensor(means, dtype=torch.float64)[:, None, None].expand(-1, 3, 2))


def drawing_of(pipe, schedule, inversion, prompts, guidance_scale):
    """Branches of these prompts, whatever was inverted."""
    texts = (encode_prompt(pipe, told) for told in ([""] * len(prompts), prompts))
    return Drawing(pipe, schedule, inversion, *texts, guidance_scale)


def inverted(steps, latent=16, **extras):
    """An inversion whose noise is random; engines start from there."""
    return Inversion(random(steps + 1, 1, 4, latent, latent), **extras)


class Onlooker:
    """An attention control that wants to see everything and changes nothing. seen: (kind, tokens, batch) per call."""

    def __init__(self):
        self.seen = []

    def wants_self(self, tokens):
        return True

    def wants_cross(self, tokens):
        return True

    def edit_self(self, query, key, value):
        self.seen.append(("self", query.shape[2], len(query)))
        return query, key, value

    def edit_cross(self, maps):
        self.seen.append(("cross", maps.shape[2], len(maps)))
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
        return maps


def layout(**config):
    """A UNet without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **config)


STABLE = {"cross_attention_dim": 768, "attention_head_dim": 8}  # Stable Diffusion 1.x; SDXL:
XL = {"cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
      "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
      "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
      "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True}  # fmt: skip
BLIND = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
         "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "mid_block_type": None}  # fmt: skip
