"""Tune a model's singular values on a few pictures of a subject, of several subjects, or on a single picture.

    python -m svdiff.train --instance_data_dir dog/ --instance_prompt "photo of a sks dog" --class_prompt "a dog"
    python -m svdiff.train --concepts_list two_subjects.json --unmix_weight 0.1
    python -m svdiff.train --image_path crown.jpg --instance_prompt "photo of a crown with a golden eagle on it"

Without arguments: a subject of the picturebook. accelerate launch and torchrun train in several processes.
"""

import argparse
import hashlib
import time
from pathlib import Path

from common.runs import ROOT, InputError, make_parser, script, write_config, write_json
from common.training_flags import add_subject_flags, add_training_flags, parse_training
from svdiff import options


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add_training_flags(parser, output_dir=options.OUTPUT_DIR, max_train_steps=500, train_batch_size=1)
    add_subject_flags(parser, with_prior_preservation=True, num_class_images=200)
    options.add_svdiff_flags(parser)
    args = parse_training(parser, argv, options.TRAINING_PRESET)
    options.resolve_training(args)
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    concepts = options.concepts_of(args)
    if args.print_config:
        options.show_config(args, concepts=[vars(concept) for concept in concepts])
        return
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from common.pipelines import Conditioning, chosen_resolution, encode_image, encode_prompt, load_pipeline
    from common.training import (
        check_finite,
        fingerprint,
        identity,
        make_accelerator,
        make_optimizer,
        noised,
        resume_training,
        save_training,
        step_generator,
        target,
        whole_seconds,
    )
    from svdiff import unmix
    from svdiff.cut_mix import check_length
    from svdiff.samples import draw_batch
    from svdiff.spaces import SPACES, check_folder

    accelerator = make_accelerator(args, "svdiff")
    micros, process, processes = args.gradient_accumulation_steps, accelerator.process_index, accelerator.num_processes
    pipe = load_pipeline(args.pretrained_model_name_or_path, accelerator.device)
    check_folder(Path(args.output_dir), pipe, args)
    resolution = chosen_resolution(pipe, args.resolution)
    if args.cut_mix_unmix_prob:
        check_length(pipe.tokenizer, [concept.instance_prompt for concept in concepts])
    source = read_pictures(args, pipe, concepts, resolution, accelerator)
    with accelerator.main_process_first():  # the others then find the basis on disk
        tuned = SPACES[args.parameter_space](pipe, args)
    if args.parameter_space != "full" and args.mixed_precision != "no":  # frozen weights in half; shifts stay float32
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}[args.mixed_precision]
        pipe.unet.to(half)
        for weight in tuned.weights.values():
            weight.data = weight.data.float()
    keepers = unmix.watch(pipe.unet, args.unmix_resolution) if args.unmix_weight and len(concepts) > 1 else []
    if args.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.unet.train()  # diffusers checkpoints in this mode only; there is no dropout
    optimizer, schedule = make_optimizer(tuned.groups, args, processes)
    given = {f"{which}-{k}": picture for which, own in enumerate(source.instances) for k, picture in enumerate(own)}
    who = identity(args, base=tuned.base, picture_fingerprint=fingerprint(given),
                   concepts=[vars(concept) for concept in concepts])  # fmt: skip
    start = resume_training(args, tuned.weights, optimizer, schedule, who, accelerator.scaler)
    alpha_bar, prediction_type = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
    parameters, known = list(tuned.weights.values()), {}
    if accelerator.is_main_process:
        print(f"{tuned.count:,} numbers are trained, {args.max_train_steps} steps, resolution {resolution}")
    began, loss = time.perf_counter(), torch.tensor(float("nan"))

    def encoded(prompts: list[str]) -> Conditioning:
        """The prompts' conditioning: anew while the text encoder is tuned, from memory while it is frozen."""
        if args.train_text_encoder:
            return encode_prompt(pipe, prompts, (resolution, resolution))
        for prompt in set(prompts) - known.keys():
            known[prompt] = encode_prompt(pipe, [prompt], (resolution, resolution))
        return Conditioning.cat(*(known[prompt] for prompt in prompts))

    progress = tqdm(range(start, args.max_train_steps), "training", disable=None if process == 0 else True)
    for step in progress:
        for micro in range(micros):
            generator = step_generator(args.seed, step, micro, process)
            batch = draw_batch(
                source, args.train_batch_size, generator, args.seed, step, micro, micros, process, processes
            )
            with torch.no_grad():
                latents = encode_image(pipe, batch.pictures, sample=True, generator=generator).float()
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            t = torch.randint(len(alpha_bar), (len(latents),), generator=generator).to(latents.device)
            z_t = noised(alpha_bar, latents, noise, t)
            for keeper in keepers:
                keeper.maps = None
            with accelerator.autocast():
                cond = encoded(batch.prompts)
                output = pipe.unet(z_t, t, encoder_hidden_states=cond.embeds, added_cond_kwargs=cond.added).sample
            wanted = target(prediction_type, alpha_bar, latents, noise, t)
            errors = F.mse_loss(output.float(), wanted, reduction="none").mean((1, 2, 3))  # Eq. 1, per sample
            loss = errors[: args.train_batch_size].mean()
            if source.classes:
                loss = loss + args.prior_loss_weight * errors[args.train_batch_size :].mean()  # Eq. 3
            if keepers:
                places = [mixed_places(pipe.tokenizer, batch, item, concepts) for item in range(args.train_batch_size)]
                maps = [keeper.maps for keeper in keepers]
                loss = loss + args.unmix_weight * unmix.unmix_loss(maps, places)  # Sec. 3.3
            accelerator.backward(loss / micros)
        average_gradients(accelerator, parameters)
        if accelerator.scaler:
            accelerator.scaler.unscale_(optimizer)
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        if accelerator.scaler:
            accelerator.scaler.step(optimizer)
            accelerator.scaler.update()
        else:
            optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if not loss.isfinite():
            raise InputError(f"the loss is {loss.item()} at step {step}: lower --learning_rate, or train in float32")
        progress.set_postfix(loss=f"{loss.item():.4f}")
        accelerator.log({"loss": loss.item(), "learning_rate": schedule.get_last_lr()[0]}, step=step + 1)
        if (step + 1) % args.checkpointing_steps == 0 and step + 1 < args.max_train_steps and process == 0:
            save_training(args, step + 1, tuned.weights, optimizer, schedule, who, accelerator.scaler)
        if args.validation_prompt and (step + 1) % args.validation_steps == 0 and process == 0:
            with accelerator.autocast():
                show(args, pipe, concepts, source, f"validation-{step + 1}.png")
    seconds = whole_seconds(time.perf_counter() - began, start, args.max_train_steps)
    accelerator.wait_for_everyone()
    check_finite(tuned.weights)
    if process == 0:
        written = tuned.save(Path(args.output_dir))
        shown = [vars(concept) for concept in concepts]
        write_config(args.output_dir, args, base=tuned.base, concepts=shown)
        write_json(Path(args.output_dir) / "metrics.json", {
            "loss": loss.item() if start < args.max_train_steps else None,
            "trained_numbers": tuned.count, "seconds": seconds,
            "bytes": {file.name: file.stat().st_size for file in written},
        })  # fmt: skip
        with accelerator.autocast():
            show(args, pipe, concepts, source, "grid.png")
        print(f"{seconds:.0f} s; weights, and grid.png with what they draw, in {args.output_dir}")
    accelerator.end_training()


def read_pictures(args: argparse.Namespace, pipe, concepts: list, resolution: int, accelerator):
    """The samples.Source of a training; class pictures that are missing are drawn first, by the untuned model."""
    from common.training import generate_class_pictures, load_pictures
    from svdiff.basis import base_hash
    from svdiff.samples import Source

    instances = [
        load_pictures([Path(args.image_path)] if args.image_path else concept.instance_data_dir, resolution)
        for concept in concepts
    ]
    classes = []
    if args.with_prior_preservation:
        model = f"{pipe.name_or_path} {base_hash(pipe.unet)}"
        for concept in concepts:
            folder = Path(concept.class_data_dir or class_folder(concept.class_prompt, model, resolution))
            generate_class_pictures(
                pipe, concept.class_prompt, folder, args.num_class_images, resolution, args.sample_batch_size,
                process=accelerator.process_index, processes=accelerator.num_processes,
            )  # fmt: skip
            accelerator.wait_for_everyone()
            classes.append(load_pictures(folder, resolution)[: args.num_class_images])
    return Source(concepts, instances, classes, resolution, args.cut_mix_unmix_prob, args.cut_mix_fit,
                  args.center_crop, args.random_flip)  # fmt: skip


def class_folder(prompt: str, model: str, resolution: int) -> Path:
    """Where class pictures are kept and found again by later trainings of the same model; models never share a folder,
    nor do prompts that differ in case or in their ends alone."""
    words = "-".join("".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split())
    digest = hashlib.sha256(f"{prompt}\n{model}".encode()).hexdigest()[:8]
    return ROOT / "outputs" / "class_pictures" / f"{words[:60]}-{resolution}-{digest}"


def mixed_places(tokenizer, batch, item: int, concepts: list):
    """For unmix_loss: (stacked, token positions of both subjects' identifiers), or None for an item of one subject."""
    from svdiff.cut_mix import identifier, split_prompt
    from svdiff.unmix import token_places

    mix = batch.mixes[item]
    if mix is None:
        return None
    places = []
    for concept in (concepts[which] for which in mix.pair):
        words, phrase = identifier(concept.instance_prompt, concept.class_prompt), split_prompt(concept.instance_prompt)
        places.append(token_places(tokenizer, batch.prompts[item], words, phrase[1]))
    return mix.stacked, tuple(places)


def average_gradients(accelerator, parameters: list) -> None:
    """The mean over processes. No wrapper is put around the model: it would send U and V with every forward pass."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")


def show(args: argparse.Namespace, pipe, concepts: list, source, name: str) -> None:
    """A sheet: the training pictures, and what the model draws."""
    from common.images import grid, save_png, to_pil
    from svdiff.editing import Sampling, draw

    prompt = args.validation_prompt or options.default_validation_prompt(args, concepts)
    training = pipe.unet.training
    pipe.unet.eval()
    pictures = draw(pipe, prompt, [args.seed + k for k in range(args.num_validation_images)], Sampling(),
                    source.resolution)  # fmt: skip
    pipe.unet.train(training)
    given = [picture.float() / 255 for pictures in source.instances for picture in pictures[:4]]
    rows = [[to_pil(picture) for picture in given], [to_pil(picture) for picture in pictures]]
    save_png(Path(args.output_dir) / name, grid(rows, ["trained on", prompt]))


if __name__ == "__main__":
    main()
