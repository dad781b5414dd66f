"""The kinds of methods that edit one picture: an editor is loaded once, then called with an item and a seed.

An item is an EditItem of a folder that picture_list has written. An editor gives {"source", "edited"}: the picture as
the method saw it, and what it made of it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.flags import is_picturebook_folder
from eval.tracks import exemplar_editing, svdiff_editing
from eval.tracks.track import given

Editor = Callable[[Any, int], dict]


@dataclass(frozen=True)
class Kind:
    """load: (flags of eval.compare, folder of the track, name of the method) -> its editor. needs: what it wants of an
    entry of the list. random: whether it draws random numbers, and is run once per seed."""

    load: Callable[[argparse.Namespace, Path, str], Editor]
    needs: tuple[str, ...]
    random: bool = True

    def suits(self, entry: dict[str, Any]) -> bool:
        return all(entry.get(key) for key in self.needs)


def text_editor(args: argparse.Namespace, output: Path, method: str) -> Editor:
    """An inversion and an engine (spdinv)."""
    from common.images import center_crop_resize, load_image, to_pil, to_tensor
    from spdinv import customised, options
    from spdinv import eval as spdinv_eval
    from spdinv.editing import edit_picture
    from spdinv.reproduction import items

    pair, _, preset = method.partition("@")
    inversion, engine = pair.split("+")
    flags = given(args, "pretrained_model_name_or_path", "num_inference_steps", "device", preset=preset or None)
    settings = spdinv_eval.parse([*flags, "--inversions", inversion, "--engines", engine, "--dataset", "picturebook"])
    how = options.method_of(settings, inversion, engine)
    pipe, resolution, _ = customised.load(settings)

    def edit(item, seed: int) -> dict:
        source = center_crop_resize(load_image(item.image_path), resolution)
        picture, told = to_tensor(source).to(pipe.device), items.with_words(pipe, item, how)
        made = edit_picture(pipe, picture, item.source_prompt, item.target_prompt, told)
        return {"source": source, "edited": to_pil(made.edited)}

    return edit


def svdiff_editor(args: argparse.Namespace, output: Path, method: str) -> Editor:
    """Shifts trained on the one picture, then drawn under the target prompt."""
    from common.pipelines import load_pipeline
    from svdiff.editing import Sampling

    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    how = Sampling() if args.num_inference_steps is None else Sampling(num_inference_steps=args.num_inference_steps)

    def edit(item, seed: int) -> dict:
        folder = output / "trainings" / f"{item.id}-{seed}"
        own = argparse.Namespace(**{**vars(args), "seed": seed, "max_train_steps": None})
        svdiff_editing.train(item, folder, own)
        pictures, _ = svdiff_editing.edit(pipe, item, folder, how, svdiff_editing.METHODS[method], seed)
        return pictures

    return edit


def exemplar_editor(args: argparse.Namespace, output: Path, method: str) -> Editor:
    """PIXELS, its controls and the baselines that run on the same model."""
    from common.images import to_pil
    from pixels import eval as pixels_eval
    from pixels.reproduction import scoring
    from pixels.reproduction.pairs import benchmark_pairs

    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    encoders = None if on_picturebook else "picturebook"  # edits are scored elsewhere
    settings = pixels_eval.parse(given(args, "pretrained_model_name_or_path", "num_inference_steps", "device",
                                       metric_encoders=encoders, output_dir=output))  # fmt: skip
    bench = exemplar_editing.make_bench(settings, exemplar_editing.own_settings(on_picturebook))
    pairs = {pair.id: pair for pair in benchmark_pairs(output / "pie_bench")}

    def edit(item, seed: int) -> dict:
        bench.args.seed = seed
        loaded = scoring.load_pair(pairs[item.id], bench.size)
        made = bench.edit(method, loaded)
        return {"source": to_pil(loaded["source"], "nearest"), "edited": to_pil(made, "nearest")}

    return edit


def inpaint_editor(args: argparse.Namespace, output: Path, method: str) -> Editor:
    """The exemplar's subject in the masked hole."""
    from common.images import load_image
    from image_inpaint.loading import load
    from image_inpaint.options import PUBLISHED
    from image_inpaint.painting import paint

    name = args.pretrained_model_name_or_path
    pipe = load(name if is_picturebook_folder(name) else PUBLISHED, args.device)

    def edit(item, seed: int) -> dict:
        source = load_image(item.image_path)
        exemplar = load_image(output / "pie_bench" / item.extras["exemplar_path"])
        return {"source": source, "edited": paint(pipe, [source], [item.mask], [exemplar], [seed])[0]}

    return edit


TEXT = Kind(text_editor, ("source_prompt", "target_prompt"), random=False)
SVDIFF = Kind(svdiff_editor, ("source_prompt", "target_prompt"))
EXEMPLAR = Kind(exemplar_editor, ("exemplar", "edit_map"))
INPAINT = Kind(inpaint_editor, ("exemplar", "mask"))
