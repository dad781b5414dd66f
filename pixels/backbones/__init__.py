"""The diffusion models that PIXELS runs on: Stable Diffusion 1.x and 2.x, SDXL with and without refiner, Kandinsky 2.2.

`load_model` finds and loads one; `bind` tells it prompt, strength and guidance and gives a `Backbone`, all that
surgery.py knows of a model.
"""

from pixels.backbones.backbone import Backbone, select_timesteps
from pixels.backbones.kandinsky import bind_kandinsky
from pixels.backbones.loading import Model, load_model
from pixels.backbones.stable_diffusion import bind_stable_diffusion

__all__ = ["Backbone", "Model", "bind", "load_model", "select_timesteps"]


def bind(model: Model, **settings) -> Backbone:
    """A Backbone from a loaded model. settings: of bind_stable_diffusion and bind_kandinsky; what concerns the other
    kind of model alone is left out."""
    if model.kind == "kandinsky":
        settings.pop("refiner_start", None)
        return bind_kandinsky(model, **settings)
    for name in ("seed", "image_embedding"):
        settings.pop(name, None)
    return bind_stable_diffusion(model, **settings)
