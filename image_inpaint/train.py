"""Train an image-guided inpainting model: on a domain, or on two to four photographs of a subject (Sec. 4.1, Eq. 6).

    python -m image_inpaint.train --instance_data_dir CHAIR                       low-rank updates, a small file
    python -m image_inpaint.train --instance_data_dir CHAIR --tuning full
    python -m image_inpaint.train --stage pretrain --train_data_dir LSUN …        a domain, from a text-to-image model

Without arguments: a subject of the picturebook.
"""

import argparse
import time
from pathlib import Path

from common.flags import show_config
from common.runs import measure, script, write_config, write_json
from image_inpaint import options


def load_model(args: argparse.Namespace, device: str):
    """The model to start from, float32; what is random in it depends on --seed alone, so that it can be made again."""
    import torch

    from image_inpaint import loading

    name = args.pretrained_model_name_or_path
    if args.stage == "subject" or args.prior == "inpainting":
        return loading.load(name, device)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        return loading.from_text_to_image(name, args.clip_model_name_or_path, device, args.prior == "text_to_image")


def make_trainable(pipe, args: argparse.Namespace) -> dict:
    """The tensors that are trained, by name: low-rank updates, or the UNet, the mapper and the learned vector."""
    from torch import nn

    from image_inpaint.conditioning import trained_part
    from image_inpaint.lora import add_lora

    if args.tuning == "lora":
        how = args.rank, args.lora_alpha, args.lora_targets, args.layer_dropout, args.seed, args.lora_init
        return add_lora(pipe.unet, *how)
    for layer in pipe.unet.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = args.layer_dropout
    trained = {f"unet.{name}": p for name, p in pipe.unet.named_parameters()}
    trained |= {f"image_encoder.{name}": p for name, p in trained_part(pipe.image_encoder).items()}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def make_examples(args: argparse.Namespace, accelerator):
    """(examples, what the sample sheet shows)."""
    from common.picturebook.benchmarks import ensure_subjects
    from image_inpaint import samples
    from image_inpaint.data import examples

    if args.stage == "subject":
        args.instance_data_dir = args.instance_data_dir or str(ensure_subjects() / "cat")
        found, photographs = examples.subject_examples(args)
        return found, samples.of_subject(args, photographs)
    if args.train_data_dir:
        processes = accelerator.process_index, accelerator.num_processes
        found = examples.domain_examples(args, *processes, accelerator.wait_for_everyone)
    else:
        found = examples.scene_examples(args.num_pictures)
    return found, samples.of_domain(found, args.num_validation_images)


def train(args: argparse.Namespace) -> dict:
    """Trains, and writes weights, checkpoints, config.json, metrics.json and grid.png. Returns the metrics."""
    from common import training_run
    from common.images import save_png
    from common.pipelines import chosen_resolution
    from image_inpaint.objective import loss
    from image_inpaint.samples import sheet

    accelerator = training_run.make_accelerator(args, "image_inpaint")
    examples, shown = make_examples(args, accelerator)
    pipe = load_model(args, str(accelerator.device))
    resolution, base = chosen_resolution(pipe, args.resolution), training_run.fingerprint(pipe.unet.state_dict())
    args.max_train_steps = options.training_steps(args, examples.count, accelerator.num_processes)
    who = training_run.identity(args, examples.paths, examples=examples.about, model=base)
    run = training_run.begin(accelerator, args, make_trainable(pipe, args), who)
    if args.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train()
    dropout = (args.condition_dropout, args.condition_dropout_per, args.layer_dropout)
    with measure() as cost:
        views_of = view_source(pipe, examples, resolution, args, accelerator)
        start = time.perf_counter()
        for step in run.steps():
            losses = []
            for micro in range(args.gradient_accumulation_steps):
                generator = run.generator(step, micro)
                with accelerator.autocast():
                    views = views_of(step, micro, generator)  # I_s, I_r and I_m, augmented (Sec. 4.1 and 4.3)
                    losses.append(loss(pipe, views, generator, *dropout))  # Eq. 6
                run.backward(losses[-1])
            accelerator.log({"loss": run.update(losses, step)}, step=step)
            run.save(step + 1)
            if run.due(step + 1, args.validation_steps):
                save_png(Path(args.output_dir) / "samples" / f"{step + 1}.png", sheet(pipe, shown, args.seed))
        stepping, steps = time.perf_counter() - start, args.max_train_steps - run.first
    accelerator.wait_for_everyone()
    metrics = {"steps": args.max_train_steps, "loss": run.last_loss,
               "trained_parameters": sum(p.numel() for p in run.weights.values()),
               "seconds": run.seconds(cost.seconds), "seconds_per_step": stepping / steps if steps > 0 else None,
               "peak_memory_mb": cost.peak_memory_mb}  # fmt: skip
    if accelerator.is_main_process:
        finish(pipe, args, shown, metrics, run.digest)
    accelerator.end_training()
    return metrics


def view_source(pipe, examples, resolution: int, args: argparse.Namespace, accelerator):
    """(step, micro, generator) -> a batch of views, drawn anew or from --cache_views that are drawn here."""
    import torch

    from common.training import picture_indices
    from image_inpaint.triples import Augmentation, Views, encode, make_triple

    side, processes = pipe.image_encoder.config.image_size, (accelerator.process_index, accelerator.num_processes)
    how = Augmentation(args.augment_source, args.augment_reference, args.mask_augmentation, args.random_crop)

    def new_view(index: int, generator):
        return make_triple(*examples.get(index, generator), resolution, side, how, generator)

    cached = range(examples.count if args.cache_views else 0)
    cache = [cached_views(pipe, new_view, index, args) for index in cached]

    def views_of(step: int, micro: int, generator) -> Views:
        micros, batch = args.gradient_accumulation_steps, args.train_batch_size
        chosen = picture_indices(examples.count, batch, args.seed, step, micro, micros, *processes)
        if not cache:
            return encode(pipe, [new_view(index, generator) for index in chosen])
        rows = torch.randint(args.cache_views, (batch,), generator=generator).tolist()
        return Views.cat([cache[index][[row]] for index, row in zip(chosen, rows, strict=True)])

    return views_of


def cached_views(pipe, new_view, index: int, args: argparse.Namespace):
    """--cache_views views of a photograph, the same whatever step they are seen at."""
    from common.training import step_generator
    from image_inpaint.triples import encode

    generators = [step_generator(args.seed, view, index, 1 << 20) for view in range(args.cache_views)]
    return encode(pipe, [new_view(index, generator) for generator in generators])


def finish(pipe, args: argparse.Namespace, shown: list, metrics: dict, who: str) -> None:
    """Weights, sample sheet, config.json, metrics.json. who: digest of the training's identity."""
    from common.images import save_png
    from image_inpaint import loading
    from image_inpaint.lora import save_lora
    from image_inpaint.samples import sheet

    folder = Path(args.output_dir)
    if args.stage == "pretrain":
        loading.save(pipe, folder / "model")
        written = sorted((folder / "model").glob("*/*.safetensors"))
    elif args.tuning == "lora":
        written = [save_lora(pipe.unet, folder)]
    else:
        written = loading.save_full(pipe, folder)
    metrics["file_bytes"] = sum(path.stat().st_size for path in written)
    save_png(folder / "grid.png", sheet(pipe, shown, args.seed))
    write_config(folder, args, training=who)
    write_json(folder / "metrics.json", metrics)
    print(f"{metrics['trained_parameters']} parameters trained in {metrics['seconds']:.0f} s; "
          f"{metrics['file_bytes'] / 1e6:.2f} MB of weights in {folder}, see {folder / 'grid.png'}")  # fmt: skip


@script
def main(argv: list[str] | None = None) -> None:
    args = options.parse_train(argv)
    if not show_config(args, steps=args.max_train_steps or f"{args.num_train_epochs} epochs"):
        train(args)


if __name__ == "__main__":
    main()
