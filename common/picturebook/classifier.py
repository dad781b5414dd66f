"""The attribute classifier: an eye that the generator never saw, for edit success, and features for LPIPS and FID."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from common.picturebook.scenes import BACKGROUNDS, COLORS, FACINGS, KINDS, LIGHTS, MATERIALS, POSES, STYLES

SCENE_HEADS = {"background": BACKGROUNDS, "light": LIGHTS, "style": STYLES}
THING_HEADS = {"material": MATERIALS, "hat": (False, True), "facing": FACINGS, "pose": POSES}
FOLDER = Path(__file__).parent / "models" / "classifier"


@dataclass(frozen=True)
class Reading:
    """What the classifier sees. things: per kind, most present first, dicts of kind, color, material, hat, facing, pose
    and `presence`, the probability that this kind in this colour is in the picture."""

    background: str
    light: str
    style: str
    things: list[dict]

    def pairs(self, count: int) -> set[tuple[str, str]]:
        """(colour, kind) of the `count` most present kinds."""
        return {(thing["color"], thing["kind"]) for thing in self.things[:count]}

    def thing(self, kind: str) -> dict:
        return next(thing for thing in self.things if thing["kind"] == kind)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class AttributeClassifier(nn.Module):
    """A small residual network on 64x64 pictures in [0, 1].

    Outputs, by head: "pairs" [B, 12, 10] (logit that the kind is there in that colour), the scene's "background",
    "light" and "style" [B, n], and for each kind its "material", "hat", "facing" and "pose" [B, 12, n], which mean
    something only where that kind is in the picture.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 160)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, 2, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        widths = [channels[0], *channels]
        self.stages = nn.ModuleList(
            Residual(widths[i], widths[i + 1], 1 if i == 0 else 2) for i in range(len(channels))
        )
        sizes = {name: len(values) for name, values in SCENE_HEADS.items()}
        sizes |= {name: len(KINDS) * len(values) for name, values in THING_HEADS.items()}
        sizes["pairs"] = len(KINDS) * len(COLORS)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * channels[-1], size) for name, size in sizes.items()})

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The maps after each stage, [B, C, h, w] at 32, 16, 8 and 4 pixels."""
        x, maps = self.stem(pictures * 2 - 1), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        last = self.features(pictures)[-1]
        return torch.cat([last.mean((2, 3)), last.amax((2, 3))], dim=1)

    def embedding(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, 160]: the last map's mean over places, the feature of the Fréchet distance."""
        return self.features(pictures)[-1].mean((2, 3))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.pooled(pictures)
        out = {name: head(pooled) for name, head in self.heads.items()}
        for name in ("pairs", *THING_HEADS):
            out[name] = out[name].unflatten(1, (len(KINDS), -1))
        return out

    @torch.no_grad()
    def read(self, pictures: torch.Tensor) -> list[Reading]:
        """What is in each picture [B, 3, 64, 64], values in [0, 1]."""
        out = {name: logits.cpu() for name, logits in self(pictures).items()}
        readings = []
        for row in range(len(pictures)):
            presence, color = out["pairs"][row].sigmoid().max(dim=1)
            things = []
            for k in presence.argsort(descending=True).tolist():
                seen = {name: values[int(out[name][row, k].argmax())] for name, values in THING_HEADS.items()}
                things.append({"kind": KINDS[k], "color": COLORS[int(color[k])], "presence": float(presence[k])} | seen)
            scene = {name: values[int(out[name][row].argmax())] for name, values in SCENE_HEADS.items()}
            readings.append(Reading(**scene, things=things))
        return readings


@cache
def load_classifier(device: str = "cpu", folder: Path = FOLDER) -> AttributeClassifier:
    """The shipped classifier, float32, frozen; loaded once per process."""
    model = AttributeClassifier(tuple(json.loads((folder / "config.json").read_text())["channels"]))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    )
    return model.eval().requires_grad_(False).to(device)
