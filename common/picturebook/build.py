"""Trains the picturebook's models from scratch, stage by stage, and ships them to common/picturebook/models.

    python -m common.picturebook.build              all stages; continues where a killed run stopped
    python -m common.picturebook.build unet         one stage (its predecessors must be shipped)
    python -m common.picturebook.build --check      measures the shipped weights against the bars
    python -m common.picturebook.build --sheet FILE draws 48 samples that nobody chose beside drawings

Order: vae and clip first (latents and words), then unet; dino and classifier stand alone. `vae_decoder` and
`clip_vision` improve the half that the UNet does not depend on, and leave the other half as it is. `inpaint` is last:
it starts from the shipped UNet and picture tower, or with --from_shipped from the shipped inpainter.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Optimiser steps per stage; batches stand in the stages. `--steps` overrides them.
STEPS = {
    "vae": 4500, "clip": 3500, "unet": 12000, "classifier": 5000, "dino": 2500, "vae_decoder": 3000,
    "clip_vision": 2000, "inpaint": 5000,
}  # fmt: skip
CHECKS = (  # in the order of common.picturebook.checks
    "size", "classifier", "vae", "clip", "dino", "distances", "denoising", "attention", "inversion", "seconds", "one",
    "two", "unseen", "everything", "anatomy", "frechet", "inpainting", "twins",
)  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=STEPS, help="train one stage only (default: all, in order)")
    parser.add_argument("--steps", type=int, help="optimiser steps of that stage")
    parser.add_argument("--scenes", type=int, default=64_000, help="how many training scenes to draw")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "picturebook" / "build", help="checkpoints")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--from_shipped", action="store_true", help="go on from the shipped weights, not from scratch")
    parser.add_argument("--compile", action="store_true", help="vae, unet, inpaint: torch.compile (needs g++)")
    parser.add_argument("--check", action="store_true", help="print the quality table of the shipped weights and stop")
    parser.add_argument("--samples", type=int, default=300, help="--check: pictures per share")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHECK", help=f"--check: of {', '.join(CHECKS)}")
    parser.add_argument("--keep", action="store_true", help="--check: put the rows into the model card")
    parser.add_argument("--sheet", type=Path, help="draw the sheet of samples of the shipped weights and stop")
    args = parser.parse_args(argv)
    if args.steps is not None and (not args.stage or args.steps < 1):
        parser.error("--steps needs a stage and a number from 1")
    if args.from_shipped and args.stage not in ("vae", "unet", "classifier", "dino", "inpaint"):
        parser.error(
            "--from_shipped is for one of the stages vae, unet, classifier, dino, inpaint; "
            "vae_decoder and clip_vision always go on from shipped weights"
        )
    if unknown := [name for name in args.only if name not in CHECKS]:
        parser.error(f"there is no check {unknown[0]}; they are {', '.join(CHECKS)}")
    if args.sheet and (args.sheet.suffix.lower() not in (".png", ".jpg", ".webp") or args.sheet.is_dir()):
        parser.error("--sheet names a picture file, such as samples.png")
    if (args.only or args.keep) and not args.check:
        parser.error("--only and --keep go with --check")
    if args.scenes < 1000 or args.samples < 2 or args.threads < 1:
        parser.error("at least 1000 --scenes, 2 --samples and 1 of --threads are needed")
    return args


def build(stage: str, steps: int, work: Path, scenes: int, from_shipped: bool, compiled: bool) -> None:
    """Trains one stage and ships its weights."""
    from common.picturebook import shipping
    from common.picturebook.classifier import load_classifier
    from common.picturebook.stages import classifier, clip, dino, inpaint, unet, vae
    from common.picturebook.stages.corpus import Corpus

    work.mkdir(parents=True, exist_ok=True)
    tokenizer = shipping.ship_tokenizer_and_scheduler()
    corpus = None if stage == "dino" else Corpus(work, scenes)
    if stage == "vae":
        start = shipping.shipped_vae() if from_shipped else None
        trained = vae.train(corpus, work, steps, start, compiled=compiled)
        shipping.ship_vae(trained, vae.scaling_factor(trained, corpus))
    elif stage == "vae_decoder":
        start = shipping.shipped_vae()
        trained = vae.train(corpus, work, steps, start, decoder_only=True, compiled=compiled)
        shipping.ship_vae(trained, start.config.scaling_factor)
    elif stage == "clip":
        shipping.ship_clip(clip.train(corpus, tokenizer, work, steps), tokenizer)
    elif stage == "clip_vision":
        shipping.ship_clip(clip.train(corpus, tokenizer, work, steps, start=shipping.shipped_clip()), tokenizer)
    elif stage == "unet":
        parts = shipping.shipped_vae(), shipping.shipped_text_encoder(), tokenizer
        start = unet.new_unet()
        if from_shipped:  # into today's shape: more heads change no weight's size
            start.load_state_dict(shipping.shipped_unet().state_dict())
        shipping.ship_unet(unet.train(corpus, *parts, work, steps, start, compiled))
    elif stage == "classifier":
        start = load_classifier() if from_shipped else None
        others = Corpus(work, scenes // 8, "held_out")
        shipping.ship_classifier(classifier.train(corpus, others, shipping.shipped_vae(), work, steps, start))
    elif stage == "dino":
        shipping.ship_dino(dino.train(work, steps, shipping.shipped_dino() if from_shipped else None))
    elif stage == "inpaint":
        if from_shipped:
            start = shipping.shipped_inpainter()
        else:
            start = inpaint.new_inpainter(shipping.shipped_unet(), shipping.shipped_clip())
        shipping.ship_inpainter(inpaint.train(corpus, shipping.shipped_vae(), start, work, steps, compiled))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        return run(args)
    except OSError as problem:  # a place that cannot be written, a checkpoint that is none, weights that are not there
        print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    if args.check:
        from common.picturebook.quality import check

        return check(args.samples, args.only, args.keep)
    if args.sheet:
        from common.picturebook.checks.sampling import sample_sheet

        sample_sheet(args.sheet)
        return 0
    for stage in [args.stage] if args.stage else STEPS:
        build(stage, args.steps or STEPS[stage], args.work, args.scenes, args.from_shipped, args.compile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
