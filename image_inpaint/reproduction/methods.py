"""What eval.py compares, by name: how each is trained on a subject, and how it paints. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.runs import read_json

if TYPE_CHECKING:
    from PIL import Image

    from image_inpaint.data.benchmark import Item, Subject

PLAIN = ["--augment_source", "none", "--augment_reference", "none", "--no-mask_augmentation"]


@dataclass(frozen=True)
class Method:
    """title: on pages. training: flags of train.py --stage subject; None where nothing is trained. reference: takes no
    part in the contest; what could be reached, or is had for nothing."""

    title: str
    training: list[str] | None = None
    reference: bool = False


METHODS = {
    "truth": Method("The true picture", reference=True),
    "truth_vae": Method("The true picture through the VAE", reference=True),
    "twin": Method("The thing without its marking", reference=True),
    "empty": Method("The empty scene", reference=True),
    "paste": Method("The reference, pasted", reference=True),
    "sd_caption": Method("Inpainting told a caption (baseline)"),
    "untuned": Method("Untuned (Paint-by-Example)"),
    "no_prior": Method("Pre-trained without Stable Diffusion's prior"),
    "lora_plain": Method("LoRA", ["--tuning", "lora", *PLAIN]),
    "lora_reference": Method("LoRA, reference augmentation", ["--tuning", "lora", "--no-mask_augmentation"]),
    "lora_mask": Method("LoRA, mask augmentation", ["--tuning", "lora", *PLAIN[:4]]),
    "full": Method("Whole model", ["--tuning", "full"]),
    "lora": Method("LoRA, both augmentations", ["--tuning", "lora"]),
}
TABLES = {
    "1": ["full", "lora"],
    "2": ["sd_caption", "untuned", "full", "lora"],
    "3": ["sd_caption", "lora_plain", "lora_reference", "lora_mask", "lora"],
}
FIGURES = {
    "2": ["sd_caption", "untuned", "lora"],
    "3": ["dreambooth", "lora"],
    "4": ["sd_caption", "untuned", "full", "lora_plain", "lora_reference", "lora"],
}
DEFAULT = ["untuned", "lora"]
REFERENCES = [name for name, method in METHODS.items() if method.reference]


def weights_folder(output: Path, method: str, subject: Subject) -> Path:
    return output / "weights" / method / subject.name


def train_method(args: argparse.Namespace, method: str, subject: Subject) -> Path:
    """Train a method on a subject, or go on with a training that was killed; the folder of its weights."""
    from image_inpaint import train

    folder = weights_folder(Path(args.output_dir), method, subject)
    if (folder / "metrics.json").is_file():
        return folder
    flags = [
        "--pretrained_model_name_or_path", args.pretrained_model_name_or_path, "--instance_data_dir",
        str(subject.folder), "--output_dir", str(folder), "--seed", str(args.seed), "--boxes", args.boxes,
        "--detector", args.detector, "--detector_threshold", str(args.detector_threshold), "--labels", *args.labels,
        "--checkpoints_total_limit", "1", "--resume_from_checkpoint", "latest", *METHODS[method].training,
        *shlex.split(args.training_flags),
    ]  # fmt: skip
    if args.device:
        flags += ["--device", args.device.partition(":")[0]]
    train.main(flags)
    return folder


def training_scores(folder: Path) -> dict[str, float]:
    """Table 1's quantities of a training, for the rows of its pictures."""
    found = read_json(folder / "metrics.json")
    return {
        "training_seconds": found["seconds"],
        "training_memory_mb": found["peak_memory_mb"],
        "file_mb": found["file_bytes"] / 1e6,
        "trained_parameters": found["trained_parameters"],
    }


def seed_of(item: Item, seed: int) -> int:
    """An item's own seed: the same in every method, and in a run that was taken up again."""
    return seed + zlib.crc32(item.id.encode())


class Painter:
    """Paints items with a method. Models are loaded when they are first needed, captions kept."""

    def __init__(self, args: argparse.Namespace):
        from image_inpaint import options
        from image_inpaint.sampling import Sampling

        self.args = args
        self.sampling = {name: Sampling(**options.sampling_of(args, options.kind_of(name))) for name in METHODS}
        self.where = {"composite": args.composite, "feather": args.feather, "context": args.context}
        self.text = self.captioner = self.whole = None
        self.captions: dict[str, str] = {}

    def pipeline(self, method: str, weights: Path | None):
        from image_inpaint.loading import in_precision, load, load_weights

        name = self.args.no_prior_model if method == "no_prior" else self.args.pretrained_model_name_or_path
        pipe = load(name, self.args.device)
        if weights:
            load_weights(pipe, weights)
        return in_precision(pipe, self.args.mixed_precision)

    def paint(self, method: str, weights: Path | None, items: Sequence[Item], subject: Subject) -> list[Image.Image]:
        """One picture per item of a subject; the seed of an item is the same for every method."""
        from image_inpaint.painting import paint

        pictures, fills = [item.source for item in items], [item.fill for item in items]
        seeds = [seed_of(item, self.args.seed) for item in items]
        if METHODS[method].reference:
            return [self.reference(method, item) for item in items]
        if method == "sd_caption":
            return self.from_captions(items, subject, pictures, fills, seeds)
        pipe = self.pipeline(method, weights)
        references = [item.reference for item in items]
        return paint(pipe, pictures, fills, references, seeds, self.sampling[method], **self.where)

    def reference(self, name: str, item: Item) -> Image.Image:
        """A row that no model of the contest painted."""
        from common.images import to_pil, to_tensor
        from common.pipelines import decode_latents, encode_image
        from image_inpaint.masks import box_of

        if name == "paste":
            left, top, right, bottom = box_of(item.fill)
            pasted = item.source.copy()
            pasted.paste(item.reference.resize((right - left, bottom - top)), (left, top))
            return pasted
        if name == "truth_vae":
            pipe = self.whole = self.whole or self.pipeline("untuned", None)
            return to_pil(decode_latents(pipe, encode_image(pipe, to_tensor(item.truth), False)))
        return {"truth": item.truth, "twin": item.twin, "empty": item.source}[name]

    def caption(self, item: Item, subject: Subject) -> str:
        """The item's own, or what the captioner says of the subject's first photograph, whichever item comes first."""
        from image_inpaint.reproduction.baselines import Captioner

        if item.caption is not None:
            return item.caption
        if subject.name not in self.captions:
            self.captioner = self.captioner or Captioner(self.args.captioner, self.args.device)
            self.captions[subject.name] = self.captioner.caption(subject.crops[0])
        return self.captions[subject.name]

    def from_captions(self, items, subject: Subject, pictures, fills, seeds) -> list[Image.Image]:
        from image_inpaint.reproduction.baselines import load_text_inpainting, paint_from_text

        self.text = self.text or load_text_inpainting(self.args.text_model, self.args.device)
        prompts = [self.caption(item, subject) for item in items]
        steps = self.args.num_inference_steps
        guidance = self.args.text_guidance_scale
        return paint_from_text(self.text, pictures, fills, prompts, seeds, steps, guidance, **self.where)
