"""SVDiff's whole training as svdiff.train runs it, each fixed picture and each text encoded once, against the same
with everything encoded anew in every step. For make bench."""

import argparse

import torch

from eval.bench.ratios import against, middle, ratios, rounds

STEPS, SUBJECT_PICTURES, CLASS_PICTURES, BATCH = 100, 4, 24, 2
GOAL = 0.85  # of the seconds


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """A row per pair of trainings; text encoder tuned and frozen. pipe: of the other parts; pipelines of its own are
    trained."""
    found = {}
    for frozen in (False, True):
        rows, text = training_rows(args, frozen), "frozen" if frozen else "tuned"
        found[f"training_{text}_text"], ratio = rows, ratios(rows, "once", "anew")
        print(f"SVDiff, {STEPS} steps of {BATCH} + {BATCH}, text encoder {text}, {len(rows)} pairs: encoded once / "
              f"anew {middle(ratio)}{against(ratio, GOAL)}")  # fmt: skip
    return found


def training_rows(args: argparse.Namespace, frozen: bool) -> list[dict]:
    """Two whole trainings in turn, on pictures of noise."""
    from common.pipelines import encode_prompt, load_pipeline, native_resolution
    from common.training import step_generator
    from svdiff.basis import Bases
    from svdiff.objective import loss
    from svdiff.options import Concept
    from svdiff.samples import Encoder, Source, draw_batch
    from svdiff.spaces import spectral_shifts

    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    told = argparse.Namespace(train_text_encoder=not frozen, parameter_subset="UNet", learning_rate=0.0,
                              learning_rate_1d=0.0, pretrained_model_name_or_path=pipe.name_or_path)  # fmt: skip
    groups = spectral_shifts(pipe, told, Bases(pipe)).groups
    optimizer, side = torch.optim.AdamW(groups, weight_decay=0.0, fused=True), native_resolution(pipe)
    pictures = torch.randint(0, 256, (SUBJECT_PICTURES + CLASS_PICTURES, 3, side, side), dtype=torch.uint8)
    own, others = list(pictures[:SUBJECT_PICTURES]), list(pictures[SUBJECT_PICTURES:])
    source = Source([Concept("", "a sks cat", None, "a cat")], [own], [others], side, cut_mix_prob=0.0)

    def train(once: bool) -> None:
        encoder = Encoder(pipe, side, frozen)
        for step in range(min(STEPS, 2 * args.num_inference_steps)):
            encoder = encoder if once else Encoder(pipe, side, frozen)
            generator = step_generator(0, step)
            batch = draw_batch(source, BATCH, generator, step)
            latents = encoder.latents(batch, generator)
            cond = encoder.conditioning(batch.prompts) if once else encode_prompt(pipe, batch.prompts, (side, side))
            loss(pipe, latents, cond, generator, BATCH, 1.0).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return rounds({"once": lambda number: train(True), "anew": lambda number: train(False)}, min(args.repeats, 5))
