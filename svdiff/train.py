"""Tune a model's singular values on a few pictures of a subject, of several subjects, or on a single picture.

    python -m svdiff.train --instance_data_dir dog/ --instance_prompt "photo of a sks dog" --class_prompt "a dog"
    python -m svdiff.train --concepts_list two_subjects.json --unmix_weight 0.1
    python -m svdiff.train --image_path crown.jpg --instance_prompt "photo of a crown with a golden eagle on it"

Without arguments: a subject of the picturebook. accelerate launch and torchrun train in several processes.
"""

import argparse
from pathlib import Path

from common.flags import show_config
from common.runs import InputError, make_parser, script, write_config, write_json
from common.training_flags import SOURCES, add_subject_flags, add_training_flags, parse_training
from svdiff import options


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add_training_flags(parser, output_dir=options.OUTPUT_DIR, max_train_steps=500, train_batch_size=1)
    add_subject_flags(parser, with_prior_preservation=True, num_class_images=200)
    options.add_svdiff_flags(parser)
    args = parse_training(parser, argv, options.preset_of(parser.parse_args(argv)), options.ONLY_WITH)
    if "subject" in parser.given and any(map(vars(args).get, SOURCES)):
        raise InputError("--subject is one of the picturebook's: leave it out where pictures are given")
    if args.image_path and args.with_prior_preservation and "with_prior_preservation" in parser.given:
        raise InputError("--image_path is learned without prior (Sec. 3.2): leave out --with_prior_preservation")
    options.resolve_training(args)
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    concepts = options.concepts_of(args)
    if show_config(args, concepts=[vars(concept) for concept in concepts]):
        return
    from common import training_run
    from common.pipelines import chosen_resolution, load_pipeline
    from svdiff.basis import Bases
    from svdiff.objective import loss
    from svdiff.samples import Encoder, draw_batch, read_source
    from svdiff.spaces import RESULTS, SPACES
    from svdiff.unmix import mixed_places, unmix_loss

    accelerator = training_run.make_accelerator(args, "svdiff")
    pipe = load_pipeline(args.pretrained_model_name_or_path, accelerator.device)
    resolution, bases = chosen_resolution(pipe, args.resolution), Bases(pipe, args.basis_dir)
    source, pictures = read_source(args, pipe, concepts, resolution, accelerator, bases.base("unet"))
    with accelerator.main_process_first():  # the others then find the basis on disk
        tuned = SPACES[args.parameter_space](pipe, args, bases)
    keepers = prepare(pipe, args, concepts, tuned)
    encoder = Encoder(pipe, resolution, frozen=not args.train_text_encoder)
    prompts = [[concept.instance_prompt, concept.class_prompt] for concept in concepts]
    who = training_run.identity(args, pictures, base=tuned.base, prompts=prompts)
    run = training_run.begin(accelerator, args, tuned.weights, who, tuned.groups, RESULTS)
    if accelerator.is_main_process:
        print(f"{tuned.count:,} numbers are trained, {args.max_train_steps} steps, resolution {resolution}")

    for step in run.steps():
        losses = []
        for micro in range(args.gradient_accumulation_steps):
            generator = run.generator(step, micro)
            batch = draw_batch(source, args.train_batch_size, generator, run.turn(step, micro))
            latents = encoder.latents(batch, generator)  # z*, and z^pr
            with accelerator.autocast():
                cond = encoder.conditioning(batch.prompts)  # c*, and c^pr
                total = loss(pipe, latents, cond, generator, args.train_batch_size, args.prior_loss_weight)  # Eq. 3
                if keepers:
                    maps = [keeper.maps for keeper in keepers]
                    places = mixed_places(pipe.tokenizer, batch, concepts)
                    total = total + args.unmix_weight * unmix_loss(maps, places)  # Sec. 3.3, last paragraph
            run.backward(total)
            losses.append(total)
        mean = run.update(losses, step)
        if args.report_to != "none":
            accelerator.log({"loss": mean, "learning_rate": run.rate, **tuned.dead()}, step + 1)
        run.save(step + 1)
        if args.validation_prompt and run.due(step + 1, args.validation_steps):
            with accelerator.autocast():
                show(args, pipe, concepts, source, f"validation-{step + 1}.png")

    seconds = run.seconds()
    accelerator.wait_for_everyone()
    training_run.check_finite(tuned.weights)
    if accelerator.is_main_process:
        finish(args, concepts, tuned, run, seconds)
        with accelerator.autocast():
            show(args, pipe, concepts, source, "grid.png")
        print(f"{seconds:.0f} s; weights, and grid.png with what they draw, in {args.output_dir}")
    accelerator.end_training()


def prepare(pipe, args: argparse.Namespace, concepts: list, tuned) -> list:
    """What the flags ask of the UNet besides its parameter space; the keepers of attention maps, for the unmix loss."""
    from common.pipelines import PRECISIONS
    from svdiff import unmix

    if args.parameter_space in ("svdiff", "lora") and args.mixed_precision != "no":  # frozen weights in half
        pipe.unet.to(PRECISIONS[args.mixed_precision])
        for weight in tuned.weights.values():
            weight.data = weight.data.float()
    if args.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.unet.train()  # diffusers checkpoints in this mode only; there is no dropout
    return unmix.watch(pipe.unet, args.unmix_resolution) if args.unmix_weight and len(concepts) > 1 else []


def finish(args: argparse.Namespace, concepts: list, tuned, run, seconds: float) -> None:
    """Weights, config.json, metrics.json."""
    output, dead = Path(args.output_dir), tuned.dead()
    sizes = {file.name: file.stat().st_size for file in tuned.save(output)}
    write_config(output, args, base=tuned.base, concepts=[vars(concept) for concept in concepts], training=run.digest,
                 validation_prompt=options.shown_prompt(args, concepts))  # fmt: skip
    write_json(output / "metrics.json", {"loss": run.last_loss, "trained_numbers": tuned.count, "seconds": seconds,
                                         **dead, "bytes": sizes})  # fmt: skip
    for name, share in dead.items():
        print(f"{name}: {100 * share:.1f} % of the singular values are at zero")


def show(args: argparse.Namespace, pipe, concepts: list, source, name: str) -> None:
    """A sheet: the training pictures, and what the model draws."""
    from common.images import grid, save_png, to_pil
    from svdiff.editing import Sampling, draw

    prompt, training = options.shown_prompt(args, concepts), pipe.unet.training
    seeds = [args.seed + k for k in range(args.num_validation_images)]
    pipe.unet.eval()
    drawn = draw(pipe, prompt, seeds, Sampling(), source.resolution)
    pipe.unet.train(training)
    given = [picture.float() / 255 for pictures in source.instances for picture in pictures[:4]]
    rows = [[to_pil(picture, "nearest") for picture in row] for row in (given, drawn)]
    save_png(Path(args.output_dir) / name, grid(rows, ["trained on", prompt]))


if __name__ == "__main__":
    main()
