"""Image-guided inpainting: is what the reference shows in the hole, and is it this individual?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from common.picturebook.classifier import load_classifier
from common.picturebook.drawing import draw
from common.picturebook.quality import BATCH, STEPS, Result, drawn, held_out_scenes, readings, share, to_tensor
from common.picturebook.scenes import Scene
from common.picturebook.shipping import MODELS, shipped_dino, shipped_inpainting
from common.picturebook.stages.dino import embed
from common.picturebook.stages.inpaint import as_batch, box_of, hole_of, reference_of

GUIDANCE = 5.0


@dataclass(frozen=True)
class Task:
    """scene: with the thing in it; source: without it; hole [64, 64], 1 = to be filled; box: of the thing; reference:
    the thing shown elsewhere, cut out."""

    scene: Scene
    source: Image.Image
    hole: np.ndarray
    box: tuple[int, int, int, int]
    reference: Image.Image


def tasks(count: int, marked: bool = False) -> list[Task]:
    """A thing, shown elsewhere and on another background, into a hole of an empty scene; marked: an individual."""
    scenes, found = held_out_scenes(2 * count, 1), []
    for number, (scene, other) in enumerate(zip(scenes[:count], scenes[count:], strict=True)):
        if marked:
            scene = scene.with_thing(0, marking=random.Random(f"inpainted {number}").randrange(1, 1 << 30),
                                     material="plain", hat=False)  # fmt: skip
        place = other.things[0]
        shown = draw(replace(other, things=(replace(scene.things[0], x=place.x, ground=place.ground),)))
        box = box_of(draw(scene).masks[0])
        source = draw(replace(scene, things=())).picture
        reference = reference_of(shown.picture, box_of(shown.masks[0]))
        found.append(Task(scene, source, hole_of(box, random.Random(number)), box, reference))
    return found


@torch.inference_mode()
def filled(items: list[Task]) -> torch.Tensor:
    """The pictures [B, 3, 64, 64] that the shipped inpainter makes, nothing pasted back."""
    pipe, made = shipped_inpainting(), []
    pipe.unet.to(memory_format=torch.channels_last)
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        inputs = {
            "image": to_tensor([item.source for item in part]) * 2 - 1,
            "mask_image": torch.from_numpy(np.stack([item.hole for item in part]))[:, None],
        }
        generator = [torch.Generator().manual_seed(start + row) for row in range(len(part))]
        settings = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="pt")
        made.append(pipe(as_batch([item.reference for item in part]), **inputs, **settings).images)
    return torch.cat(made)


def across(pictures: torch.Tensor, holes: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference, in 255ths, of neighbouring pixels on two sides of a hole's rim -> [B]."""
    total = rim = 0.0
    for axis in (2, 3):
        size = pictures.shape[axis] - 1
        step = (pictures.narrow(axis, 1, size) - pictures.narrow(axis, 0, size)).abs().mean(1, keepdim=True)
        crosses = (holes.narrow(axis, 1, size) != holes.narrow(axis, 0, size)).float()
        total, rim = total + (step * crosses).sum((1, 2, 3)), rim + crosses.sum((1, 2, 3))
    return 255 * total / rim


def trained() -> bool:
    if not (MODELS / "inpaint_unet").is_dir():
        print("inpainting: not trained yet (python -m common.picturebook.build inpaint)")
        return False
    return True


def in_the_hole(count: int) -> Iterator[Result]:
    """Recognised: kind and colour are those that the classifier is surest of. Rim: the step across it, beyond that of
    the scene with the thing drawn in."""
    if not trained():
        return
    items = tasks(count)
    pictures, source = filled(items), to_tensor([item.source for item in items])
    hole = torch.from_numpy(np.stack([item.hole for item in items]))[:, None]
    wanted = [(item.scene.things[0].color, item.scene.things[0].kind) for item in items]
    read = readings(pictures, load_classifier())
    seen = [reading.pairs(1) == {pair} for reading, pair in zip(read, wanted, strict=True)]
    kept = (1 - hole).expand_as(source)
    error = ((pictures - source).square() * kept).sum((1, 2, 3)) / kept.sum((1, 2, 3)).clamp(min=1)
    has_rest = kept.sum((1, 2, 3)) > 0
    seam = across(pictures, hole) - across(drawn([item.scene for item in items]), hole)
    yield Result("inpainting: colour and thing in the hole (%)", share(seen), count, 90, 95)
    yield Result("inpainting: background (dB)", float((-10 * torch.log10(error[has_rest])).mean()), count, 33)
    rim = float(seam[seam.isfinite()].mean())
    yield Result("inpainting: step across the hole's rim beyond the true one (255ths)", rim, count, 1.8, at_least=False)


def nearer_to_truth(items: list[Task], pictures: torch.Tensor) -> list[bool]:
    """Whether each picture, cut to the thing's place, is nearer in DINO to the true scene than to the scene with the
    thing's unmarked twin."""
    dino = shipped_dino()

    def features(shown: list[Image.Image]) -> torch.Tensor:
        crops = [reference_of(picture, item.box) for picture, item in zip(shown, items, strict=True)]
        return torch.cat([embed(dino, part) for part in to_tensor(crops).split(100)])

    images = [Image.fromarray((255 * p).round().byte().permute(1, 2, 0).numpy()) for p in pictures]
    twins_of = [item.scene.with_thing(0, marking=0) for item in items]
    with torch.no_grad():
        made = features(images)
        true, twin = (features([draw(scene).picture for scene in scenes])
                      for scenes in ([item.scene for item in items], twins_of))  # fmt: skip
    return ((made * true).sum(1) > (made * twin).sum(1)).tolist()


def twins(count: int) -> Iterator[Result]:
    if not trained():
        return
    items = tasks(count, marked=True)
    right = share(nearer_to_truth(items, filled(items)))
    yield Result("inpainting: the individual rather than its unmarked twin (%)", right, count, 70, 90)
