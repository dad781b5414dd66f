"""Methods that are shown one picture of a subject and told a prompt: nothing is trained.

IP-Adapter (Ye et al., arXiv 2308.06721): the published row does not say which variant and scale it is of; this is the
plain one of SD 1.5 at scale 0.5, which its authors advise where a text prompt is to be heard too. BLIP-Diffusion (Li et
al., NeurIPS 2023), through diffusers: a model of its own (a fine-tuned SD 1.5 with a BLIP-2 encoder), zero-shot as in
its Table 1's first row; the published row does not say whether it was tuned on the subjects.
"""

from pathlib import Path
from types import SimpleNamespace

import torch

from common.files import refused_as
from common.flags import chosen_device
from common.images import load_image
from common.model_files import find_folder
from common.pipelines import load_pipeline
from common.runs import read_json

ADAPTER = {"pretrained_model_name_or_path_or_dict": "h94/IP-Adapter", "subfolder": "models",
           "weight_name": "ip-adapter_sd15.safetensors"}  # fmt: skip
SCALE = 0.5
BLIP = "Salesforce/blipdiffusion"


class WithPicture:
    """A pipeline that is shown the same picture at every call."""

    def __init__(self, pipe, picture, class_name: str = ""):
        self.pipe, self.picture, self.class_name = pipe, picture, class_name

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    @torch.no_grad()
    def __call__(self, prompts: list[str], **settings):
        return self.pipe(prompts, ip_adapter_image=self.picture, **settings)


class WithSubject(WithPicture):
    """BLIP-Diffusion's pipeline with the call of Stable Diffusion's: it says "a <class> <prompt>" by itself."""

    @torch.no_grad()
    def __call__(self, prompts: list[str], generator: list[torch.Generator], **settings):
        made = []
        for prompt, one in zip(prompts, generator, strict=True):  # its encoder takes one picture at a time
            text = prompt.removeprefix(f"a {self.class_name}").strip()
            kinds = [self.class_name], [self.class_name]
            made.append(self.pipe([text], self.picture, *kinds, generator=one, **settings).images)
        return SimpleNamespace(images=torch.cat(made))


def load_ip_adapter(folder: Path, model: str, device: str | None = None, adapter: dict = ADAPTER):
    """The pipeline shown the first picture; prompts name the class alone. InputError without the weights."""
    picture = load_image(read_json(Path(folder) / "reference.json")["pictures"][0])
    pipe = load_pipeline(model, device)
    with refused_as(f"cannot load IP-Adapter's weights for {model}"):
        pipe.load_ip_adapter(**adapter)
    pipe.set_ip_adapter_scale(SCALE)
    return WithPicture(pipe, picture)


def load_blip(folder: Path, model: str, device: str | None = None):
    """The pipeline shown the subject's first picture. `model` is not used: the weights are its own."""
    from diffusers import BlipDiffusionPipeline

    about = read_json(Path(folder) / "reference.json")
    with refused_as(f"cannot load {BLIP}"):
        place = find_folder(BLIP, accepted={"BlipDiffusionPipeline": BlipDiffusionPipeline})
        pipe = BlipDiffusionPipeline.from_pretrained(place, local_files_only=True)
    return WithSubject(pipe.to(chosen_device(device)), load_image(about["pictures"][0]), about["class"])
