"""One edit of one pair, scored: what every table and figure of pixels.eval is made of."""

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.encoders import DREAMBOOTH_ENCODERS, Encoders, load_encoders
from common.images import load_image, to_tensor
from common.metrics import frechet_distance, score_key
from common.runs import measure
from pixels import backbones, edit_map, frames, options
from pixels.reproduction.baselines import METHODS, TRUE
from pixels.reproduction.measures import edit_scores
from pixels.reproduction.pairs import Pair
from pixels.surgery import Surgery, least

ITEM_PROMPT = "{the item's target prompt}"  # in Bench.own


@dataclass(frozen=True, eq=False)
class Bench:
    """What every table and figure needs. eyes: encoders (see load_eyes). size: of the frame. methods: by name,
    functions as in pixels.reproduction.baselines; own: fields of Sampling and Surgery that a method alone runs with."""

    args: argparse.Namespace
    model: Any
    size: tuple[int, int]
    sampling: options.Sampling
    surgery: Surgery
    eyes: Encoders
    output: Path
    methods: dict[str, Callable] = field(default_factory=lambda: METHODS)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)

    def loaded(self, pairs: list[Pair], what: str) -> Iterator[tuple[Pair, dict[str, Any]]]:
        """Each pair and what load_pair makes of it, under a progress bar that says what is done."""
        for pair in tqdm(pairs, what, disable=None):
            yield pair, load_pair(pair, self.size)

    def bind(self, loaded: dict[str, Any], **changes: Any):
        """The model told what to do with a loaded pair. changes: fields of Sampling."""
        sampling = replace(self.sampling, **changes)
        exemplar = loaded["exemplars"][-1]
        return backbones.bind(self.model, sampling, self.size, seed=self.args.seed, exemplar=exemplar)

    def edit(self, method: str, loaded: dict[str, Any], **changes: Any) -> torch.Tensor:
        """The picture [1, 3, H, W] that a method makes of a loaded pair. changes: fields of Sampling and Surgery."""
        changes = self.own.get(method, {}) | changes
        if changes.get("prompt") == ITEM_PROMPT:
            changes["prompt"] = loaded["prompt"]
        of_surgery = {name: changes.pop(name) for name in list(changes) if name in Surgery.__dataclass_fields__}
        surgery, generator = replace(self.surgery, **of_surgery), torch.Generator().manual_seed(self.args.seed)
        backbone = self.bind(loaded, **changes) if self.model else None  # a method may bring a model of its own
        if method in TRUE:
            return TRUE[method](backbone, loaded["truth"])
        return self.methods[method](backbone, loaded["source"], loaded["exemplars"], loaded["maps"], surgery, generator)


def load_bench(
    args: argparse.Namespace, methods: dict[str, Callable] = METHODS, own: dict[str, dict[str, Any]] | None = None
) -> Bench:
    """Model, encoders and settings of the flags, loaded."""
    model, sampling, size = options.load(args)
    backbones.select_timesteps(model.scheduler, "cpu", sampling)  # refuses too few, before anything is written
    eyes, surgery = load_eyes(args.metric_encoders, args.device), Surgery(**options.surgery_of(args))
    return Bench(args, model, size, sampling, surgery, eyes, Path(args.output_dir), methods, own or {})


def load_pair(pair: Pair, size: tuple[int, int]) -> dict[str, Any]:
    """A pair in the frame: source [1,3,H,W], exemplars, maps (white = keep), truth or None; and its prompt."""
    source = load_image(pair.source)
    maps = [edit_map.read(path, pair.white) for path in pair.edit_maps]
    if not pair.any_map:
        for path, read in zip(pair.edit_maps, maps, strict=True):
            frames.check_alignment(source.size[::-1], read.shape[-2:], str(path))
    exemplars = [frames.frame_tensor(load_image(path), size, "squash") for path in pair.exemplars]
    truth = pair.truth and frames.frame_tensor(load_image(pair.truth), size, "squash")
    return {"source": frames.frame_tensor(source, size, "squash"), "exemplars": exemplars, "maps": maps,
            "prompt": pair.prompt, "truth": truth}  # fmt: skip


def full_map(loaded: dict[str, Any], size: tuple[int, int]) -> torch.Tensor:
    """The least of a pair's maps over the frame [1, 1, *size]."""
    return least([F.interpolate(m, size, mode="bilinear") for m in loaded["maps"]])


def load_eyes(name: str, device: str | None) -> Encoders:
    """Encoders by --metric_encoders; all are loaded before the first edit, so that a missing one is reported then."""
    published = {"clip": DREAMBOOTH_ENCODERS["clip"], "lpips": "squeeze", "features": "inception"}
    return load_encoders(name, device, published)


def run_item(bench: Bench, pair: Pair, method: str) -> tuple[dict, dict]:
    """Edit one Pair with one method and score it: a result row (common.runs), and {"source", "exemplar_1", ..., "map",
    "edited"} as pictures."""
    loaded = load_pair(pair, bench.size)
    with measure() as cost:
        edited = bench.edit(method, loaded)
    grey = full_map(loaded, bench.size)
    shown = {"source": loaded["source"], "edited": edited, "map": grey.expand(-1, 3, -1, -1)}
    shown |= {f"exemplar_{number}": exemplar for number, exemplar in enumerate(loaded["exemplars"], start=1)}
    pictures = {name: frames.to_picture(picture) for name, picture in shown.items()}
    seen = {name: to_tensor(pictures[name]) for name in ("source", "edited")}  # scores see what the files hold
    metrics = edit_scores(seen["source"], loaded["exemplars"], seen["edited"], grey, bench.eyes, loaded["truth"])
    if pair.item is not None and bench.size == pair.item.mask_size:  # a picturebook item at its own size
        metrics = {**seen_by_classifier(pair.item, seen["edited"]), **metrics}
    row = {"paper": "pixels", "method": method, "item": pair.id, "kind": pair.kind, "seed": bench.args.seed,
           "metrics": metrics, "seconds": cost.seconds, "peak_memory_mb": cost.peak_memory_mb}  # fmt: skip
    return row, pictures


def seen_by_classifier(item, edited: torch.Tensor) -> dict[str, float]:
    """What the picturebook's classifier, which no generator ever saw, says of an item's edit [1, 3, H, W]: whether the
    change asked for is there, or which halves of a composition are recognised."""
    from common.picturebook.benchmarks import edit_success
    from common.picturebook.compositions import Composition, halves_seen

    if "composition" not in item.extras:
        return {"edit_success (picturebook)": float(edit_success(item, edited))}
    seen = halves_seen(Composition.from_dict(item.extras["composition"]), edited)
    halves = {f"{name}_half_seen (picturebook)": float(value) for name, value in seen.items()}
    return {"edit_success (picturebook)": float(all(seen.values())), **halves}


def frechet_distances(bench: Bench, pairs: list[Pair], methods: list[str]) -> dict[str, dict]:
    """{method: {"FID (encoder)": …}} of the edited pictures against the sources themselves, at the size of the method's
    pictures, in Inception's and CLIP's features or those of the picturebook's classifier. It has no interval."""
    result: dict[str, dict] = {method: {} for method in methods}
    for embedder in [bench.eyes.features, *([] if bench.eyes.classifier else [bench.eyes.clip])]:

        @functools.cache
        def of_sources(size: tuple[int, int], embedder=embedder) -> torch.Tensor:
            return torch.cat([embedder.embed(frames.frame_tensor(load_image(p.source), size, "squash")) for p in pairs])

        for method in methods if len(pairs) > 1 else ():
            files = [bench.output / "pictures" / pair.id / f"{method}.png" for pair in pairs]
            features = torch.cat([embedder.embed(to_tensor(load_image(file))) for file in files])
            value = frechet_distance(of_sources(load_image(files[0]).size[::-1]), features)
            told = {"mean": value, "low": value, "high": value, "n": len(pairs)}
            result[method][score_key("FID", embedder.label)] = told
    return result
