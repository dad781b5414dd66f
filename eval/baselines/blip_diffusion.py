"""BLIP-Diffusion (Li et al., NeurIPS 2023) through diffusers: one reference picture, its class and a text prompt.

It is a model of its own (a fine-tuned SD 1.5 with a BLIP-2 encoder), zero-shot as in its Table 1's first row; the
published row does not say whether it was tuned on the subjects.
"""

from pathlib import Path
from types import SimpleNamespace

import torch

from common.files import refused_as
from common.images import load_image
from common.model_files import find_folder
from common.runs import read_json

HUB_ID = "Salesforce/blipdiffusion"


class WithSubject:
    """diffusers' pipeline with the call of Stable Diffusion's: it says "a <class> <prompt>" by itself."""

    def __init__(self, pipe, picture, class_name: str):
        self.pipe, self.picture, self.class_name = pipe, picture, class_name

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    @torch.no_grad()
    def __call__(self, prompts: list[str], generator: list[torch.Generator], **settings):
        made = []
        for prompt, one in zip(prompts, generator, strict=True):  # its encoder takes one picture at a time
            text = prompt.removeprefix(f"a {self.class_name}").strip()
            kinds = [self.class_name], [self.class_name]
            made.append(self.pipe([text], self.picture, *kinds, generator=one, **settings).images)
        return SimpleNamespace(images=torch.cat(made))


def load(folder: Path, model: str, device: str | None = None, name: str = HUB_ID):
    """The pipeline shown the subject's first picture. `model` is not used: the weights are its own."""
    from diffusers import BlipDiffusionPipeline

    about = read_json(Path(folder) / "reference.json")
    with refused_as(f"cannot load {name}"):
        place = find_folder(name, accepted={"BlipDiffusionPipeline": BlipDiffusionPipeline})
        pipe = BlipDiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipe = pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return WithSubject(pipe, load_image(about["pictures"][0]), about["class"])
