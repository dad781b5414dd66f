"""The diffusion models that PIXELS runs on: Stable Diffusion 1.x and 2.x, SDXL with and without refiner, Kandinsky 2.2.

`load_model` finds and loads one; `bind` tells it prompt, strength and guidance and gives a `Backbone`, all that
surgery.py knows of a model.
"""

from torch import Tensor

from pixels.backbones.backbone import Backbone, select_timesteps
from pixels.backbones.kandinsky import bind_kandinsky
from pixels.backbones.loading import Model, load_model
from pixels.backbones.stable_diffusion import bind_stable_diffusion
from pixels.options import Sampling

__all__ = ["Backbone", "Model", "bind", "load_model", "select_timesteps"]


def bind(
    model: Model, sampling: Sampling, size: tuple[int, int], batch: int = 1, seed: int = 0,
    exemplar: Tensor | None = None,
) -> Backbone:  # fmt: skip
    """A loaded model, told what to do with `batch` pictures of `size` (height, width).

    seed, exemplar [batch, 3, H, W] in [0, 1]: of Kandinsky alone, whose prior draws; it is shown the exemplar where
    sampling.image_embedding asks for that.
    """
    if model.kind == "kandinsky":
        return bind_kandinsky(model, sampling, batch, seed, exemplar)
    return bind_stable_diffusion(model, sampling, size, batch)
