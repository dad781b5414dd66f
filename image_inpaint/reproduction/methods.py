"""What eval.py compares, by name: how each is trained on a subject, and how it paints. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.flags import as_flags
from common.runs import read_json
from image_inpaint import options

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

    @property
    def tuning(self) -> str:
        """A key of options.PICTUREBOOK_GUIDANCE."""
        return self.training[1] if self.training else "untuned"


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


def weights_folder(args: argparse.Namespace, method: str, subject: Subject) -> Path:
    return Path(args.output_dir) / "weights" / method / subject.name


def seeds_of(items: Sequence[Item], seed: int) -> list[int]:
    """An item's own seed: the same in every method, and in a run that was taken up again."""
    return [seed + zlib.crc32(item.id.encode()) for item in items]


class Painter:
    """The methods above at work, for eval.run_all. Models are loaded when they are first needed, captions kept."""

    paper = "image_inpaint"  # of the rows

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.where = {"composite": args.composite, "feather": args.feather, "context": args.context}
        self.text = self.captioner = self.whole = None
        self.captions: dict[str, str] = {}

    def settings(self, method: str) -> dict:
        """What tells rows of a method from those of another training."""
        training, tuning = METHODS[method].training, METHODS[method].tuning
        if training is None:
            return {"no_prior_model": self.args.no_prior_model} if method == "no_prior" else {}
        preset = {**options.PICTUREBOOK_PRESET["subject"], **options.PICTUREBOOK_TUNING[tuning]}
        return {"flags": training, "preset": preset}

    def train(self, method: str, subject: Subject) -> tuple[Path | None, dict[str, float]]:
        """Train a method on a subject, or go on with a training that was killed: the folder of its weights, and Table
        1's quantities for the rows of its pictures."""
        from image_inpaint import train

        args = self.args
        if METHODS[method].training is None:
            return None, {}
        folder = weights_folder(args, method, subject)
        if not (folder / "metrics.json").is_file():
            same = ("pretrained_model_name_or_path", "seed", "boxes", "detector", "detector_threshold", "labels")
            flags = as_flags({name: getattr(args, name) for name in same} | {
                "instance_data_dir": subject.folder, "output_dir": folder, "checkpoints_total_limit": 1,
                "resume_from_checkpoint": "latest", "device": args.device and args.device.partition(":")[0],
            })  # fmt: skip
            train.main([*flags, *METHODS[method].training, *shlex.split(args.training_flags)])
        found = read_json(folder / "metrics.json")
        return folder, {"training_seconds": found["seconds"], "training_memory_mb": found["peak_memory_mb"],
                        "file_mb": found["file_bytes"] / 1e6,
                        "trained_parameters": found["trained_parameters"]}  # fmt: skip

    def paint(self, method: str, weights: Path | None, items: Sequence[Item], subject: Subject) -> list[Image.Image]:
        """One picture per item of a subject."""
        from image_inpaint.painting import paint
        from image_inpaint.reproduction.baselines import load_text_inpainting, paint_from_text
        from image_inpaint.sampling import Sampling

        if METHODS[method].reference:
            return [self.reference(method, item) for item in items]
        given = [item.source for item in items], [item.fill for item in items]
        seeds = seeds_of(items, self.args.seed)
        if method == "sd_caption":
            self.text = self.text or load_text_inpainting(self.args.text_model, self.args.device)
            prompts = [self.caption(item, subject) for item in items]
            steps, guidance = self.args.num_inference_steps, self.args.text_guidance_scale
            return paint_from_text(self.text, *given, prompts, seeds, steps, guidance, **self.where)
        sampling = Sampling(**options.sampling_of(self.args, METHODS[method].tuning))
        references = [item.reference for item in items]
        return paint(self.pipeline(method, weights), *given, references, seeds, sampling, **self.where)

    def pipeline(self, method: str, weights: Path | None):
        from image_inpaint.loading import load_tuned

        name = self.args.no_prior_model if method == "no_prior" else self.args.pretrained_model_name_or_path
        return load_tuned(name, weights, self.args.device, self.args.mixed_precision)[0]

    def reference(self, name: str, item: Item) -> Image.Image:
        """A row that no model of the contest painted."""
        from common.images import to_pil, to_tensor
        from common.pipelines import decode_latents, encode_image
        from image_inpaint.masks import box_of

        if name == "paste":
            box, pasted = box_of(item.fill), item.source.copy()
            pasted.paste(item.reference.resize((box[2] - box[0], box[3] - box[1])), box)
            return pasted
        if name == "truth_vae":
            self.whole = self.whole or self.pipeline("untuned", None)
            return to_pil(decode_latents(self.whole, encode_image(self.whole, to_tensor(item.truth))))
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
