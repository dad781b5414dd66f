"""A pipeline whose network is one line of algebra, in float64, so that a test can differentiate it by hand."""

from types import SimpleNamespace

import torch

from common.ddim import make_schedule
from common.pipelines import Conditioning, encode_prompt
from spdinv.sampling import Drawing

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
             "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "epsilon"}  # fmt: skip


MEANS = {"": -0.3, "a cat": 0.1, "a dog": 0.7}  # of the embeddings of the prompts that the toy knows


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


def toy_tokenizer(text, **options):
    return {"offset_mapping": []}


toy_tokenizer.model_max_length = 77


def toy_pipe(weight, squash=torch.tanh):
    unet = ToyUnet(weight, squash)

    def encode_prompt(prompts, **options):
        return toy_cond([MEANS[text] for text in prompts]).embeds.to(unet.dtype), None

    return SimpleNamespace(unet=unet, tokenizer=toy_tokenizer, encode_prompt=encode_prompt, device="cpu")


def toy_schedule(steps):
    return make_schedule(SCHEDULER, steps)


def toy_cond(means):
    return Conditioning(torch.tensor(means, dtype=torch.float64)[:, None, None].expand(-1, 3, 2))


def drawing_of(pipe, schedule, inversion, prompts, guidance_scale):
    """Branches of these prompts, whatever was inverted."""
    texts = (encode_prompt(pipe, told) for told in ([""] * len(prompts), prompts))
    return Drawing(pipe, schedule, inversion, *texts, guidance_scale)
