"""IP-Adapter (Ye et al., arXiv 2308.06721) on a subject: text prompt and one reference picture, nothing is trained.

The published row does not say which variant and scale it is of; this is the plain one of SD 1.5 at scale 0.5, which its
authors advise where a text prompt is to be heard too.
"""

from pathlib import Path

import torch

from common.files import refused_as
from common.images import load_image
from common.pipelines import load_pipeline
from common.runs import read_json

ADAPTER = {"pretrained_model_name_or_path_or_dict": "h94/IP-Adapter", "subfolder": "models",
           "weight_name": "ip-adapter_sd15.safetensors"}  # fmt: skip
SCALE = 0.5


class WithReference:
    """A pipeline that is shown the same picture at every call."""

    def __init__(self, pipe, picture):
        self.pipe, self.picture = pipe, picture

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    @torch.no_grad()
    def __call__(self, prompts: list[str], **settings):
        return self.pipe(prompts, ip_adapter_image=self.picture, **settings)


def load(folder: Path, model: str, device: str | None = None, adapter: dict = ADAPTER):
    """The pipeline shown the first picture; prompts name the class alone. InputError without the weights."""
    picture = load_image(read_json(Path(folder) / "reference.json")["pictures"][0])
    pipe = load_pipeline(model, device)
    with refused_as(f"cannot load IP-Adapter's weights for {model}"):
        pipe.load_ip_adapter(**adapter)
    pipe.set_ip_adapter_scale(SCALE)
    return WithReference(pipe, picture)
