"""Personalise a text-to-image model on a few pictures, and keep its weights near the base model's (Alg. 1).

    python -m lipschitz_personalize.train --instance_data_dir DOG --instance_prompt "a photo of a sks dog"

With --l2_reg_weight 0 this is plain DreamBooth, Custom Diffusion or DreamBooth-LoRA, to the bit; with
--with_prior_preservation, too, their usual form. Without arguments: a subject of the picturebook.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from common.flags import as_flags, show_config
from common.runs import InputError, measure, script, write_config, write_json
from lipschitz_personalize import options

LOOKS, INERT = 20, 0.01  # how often a training measures its penalty, and the share of the gradient that is too little


@script
def main(argv: list[str] | None = None) -> None:
    train(options.parse(argv))


def train(args: argparse.Namespace, space_of=None) -> None:
    """Alg. 1, from the flags to the files in --output_dir. space_of(pipe, args): what is trained (`prepare`)."""
    if show_config(args):
        return
    import torch

    from common import training, training_run
    from common.images import grid, save_png
    from lipschitz_personalize import batches
    from lipschitz_personalize.objectives import chosen_resolution, denoising_loss, network
    from lipschitz_personalize.parameter_spaces import WEIGHTS

    output = Path(args.output_dir)
    accelerator = training_run.make_accelerator(args, "lipschitz_personalize")
    torch.manual_seed(args.seed)  # the first values of LoRA's factors
    paths = options.subject_pictures(args)
    pipe = load(args, accelerator.device)
    args.resolution = chosen_resolution(pipe, args.resolution)
    training.load_pictures(paths, args.resolution)  # a damaged one is told of before class pictures are drawn
    base = training_run.fingerprint(network(pipe).state_dict())
    class_seconds = batches.ensure_class_pictures(pipe, args, accelerator)
    space = (space_of or prepare)(pipe, args)
    given = batches.sources(pipe, args, paths, space.trains_text)
    regularizer, looks = penalty(pipe, args, space), []  # Alg. 1: theta^base is kept
    if args.gradient_checkpointing:
        network(pipe).enable_gradient_checkpointing()
    who = training_run.identity(args, [path for source in given for path in source.paths], base=base)
    how = optimizer_of(args, space, regularizer)
    run = training_run.begin(accelerator, args, space.parameters, who, results=WEIGHTS, **how)

    def pull(step: int) -> None:
        """Alg. 1: + lambda sum_i ||theta_i - theta_i^base||^2, by its gradient; now and then how much that is."""
        if step % (1 + args.max_train_steps // LOOKS) == 0 or step + 1 == args.max_train_steps:
            looks.append({"penalty": regularizer.value(), "penalty_share": regularizer.share()})
        regularizer.add_gradient()

    with measure() as cost:
        for step in run.steps():
            losses = []
            for micro in range(args.gradient_accumulation_steps):
                generator = run.generator(step, micro)
                batch = batches.next_batch(pipe, args, given, step, micro, accelerator, generator)
                with accelerator.autocast():
                    losses.append(denoising_loss(pipe, batch, args, generator))  # ||eps - eps_theta(z_t, t, c)||^2
                run.backward(losses[-1])
            mean = run.update(losses, step, partial(pull, step) if regularizer else None)
            accelerator.log({"loss": mean, "lr": run.rate, **(looks[-1] if looks else {})}, step)
            run.save(step + 1)
            if args.validation_prompt and run.due(step + 1, args.validation_steps):
                picture = grid([draw(pipe, args, args.validation_prompt)])
                save_png(output / "validation" / f"{step + 1:06d}.png", picture)
    accelerator.end_training()
    if accelerator.is_main_process:
        training_run.check_finite(space.parameters)
        space.save(output)
        write_config(output, args, base_weights=base, training=run.digest)
        save_png(output / "grid.png", draw_grid(pipe, args, paths))
        finish(output, space, regularizer, run, looks, cost, class_seconds)


def load(args: argparse.Namespace, device):
    """The frozen pipeline. Custom Diffusion and LoRA keep what they do not train in --mixed_precision, as diffusers'
    scripts do; otherwise weights are float32 (under autocast)."""
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    from common.pipelines import PRECISIONS
    from lipschitz_personalize.objectives import backbone_of, load_backbone

    half = PRECISIONS[args.mixed_precision]
    dtype = half if args.parameter_space in ("custom_diffusion", "lora") else torch.float32
    pipe = load_backbone(args.pretrained_model_name_or_path, device, dtype)
    if backbone_of(pipe) != args.backbone:
        raise InputError(f"{args.pretrained_model_name_or_path} is of the kind {backbone_of(pipe)}, and the defaults "
                         f"are those of {args.backbone}: give --backbone {backbone_of(pipe)}")  # fmt: skip
    if device.type == "cpu" and args.backbone != "sd3":
        pipe.unet.set_attn_processor(AttnProcessor())  # on CPUs its backward pass is the faster one
    return pipe


def prepare(pipe, args: argparse.Namespace):
    """The parameters to train."""
    from lipschitz_personalize import parameter_spaces

    if args.parameter_space == "custom_diffusion":
        initializer = args.initializer_token or args.instance_prompt.split()[-1]
        return parameter_spaces.custom_diffusion(pipe, args.modifier_token, initializer)
    if args.parameter_space == "lora":
        return parameter_spaces.lora(pipe, args.lora_rank, args.lora_alpha, args.lora_targets, args.lora_init)
    return parameter_spaces.full(pipe)


def penalty(pipe, args: argparse.Namespace, space):
    """The regulariser around the weights as they stand, or None where --l2_reg_weight is 0."""
    import torch

    from lipschitz_personalize.layer_lambdas import factors_of
    from lipschitz_personalize.regularizer import make_regularizer

    if args.l2_reg_weight == 0:
        return None
    return make_regularizer(
        space.parameters, args.l2_reg_weight, args.l2_convention, space.counts, factors_of(pipe, args, space),
        space.change, getattr(torch, args.l2_base_dtype), "cpu" if args.l2_base_device == "cpu" else None,
    )  # fmt: skip


def optimizer_of(args: argparse.Namespace, space, regularizer) -> dict:
    """Groups and kind of the optimiser. Where nothing is clipped or decayed, Adam's own decay is half of the penalty's
    work. Custom Diffusion's scripts double a scaled rate (--scale_lr) with prior preservation."""
    import torch

    if regularizer and not args.max_grad_norm and not args.adam_weight_decay:
        return {"groups": regularizer.adam_groups(), "kind": torch.optim.Adam}
    doubled = args.parameter_space == "custom_diffusion" and args.scale_lr and args.with_prior_preservation
    rate = args.learning_rate * (2 if doubled else 1)
    return {"groups": [{"params": list(space.parameters.values()), "lr": rate}]}


def finish(output: Path, space, regularizer, run, looks: list[dict], cost, class_seconds: float) -> None:
    """metrics.json, and a word to the user."""
    share = looks[-1]["penalty_share"] if looks else 0.0
    if looks and share < INERT:
        print(f"the penalty is inert: at the end its gradient is {share:.1g} of the loss's; raise --l2_reg_weight, or "
              "say --l2_reg_weight 0", file=sys.stderr)  # fmt: skip
    penalty, seconds = regularizer.value() if regularizer else 0.0, run.seconds(cost.seconds)
    write_json(output / "metrics.json", {
        "loss": run.last_loss, "penalty": penalty, "penalty_share": share,
        "trainable_parameters": sum(tensor.numel() for tensor in space.parameters.values()),
        "file_bytes": sum(path.stat().st_size for path in output.rglob("*.safetensors")),
        "seconds": seconds, "class_seconds": class_seconds, "peak_memory_mb": cost.peak_memory_mb,
    })  # fmt: skip
    said = f", penalty {penalty:.3g} ({share:.0%} of the gradient)" if regularizer else ""
    print(f"{len(run.losses)} steps in {seconds:.0f} s, loss {run.last_loss:.3g}{said}; weights and pictures in "
          f"{output}, see {output / 'grid.png'}")  # fmt: skip


def draw_grid(pipe, args: argparse.Namespace, paths: list[Path]):
    """The subject, then samples of its prompt and of --validation_prompt."""
    from common.images import center_crop_resize, grid, load_image

    rows = {"the subject": [center_crop_resize(load_image(path), args.resolution) for path in paths[:6]]}
    rows |= {prompt: draw(pipe, args, prompt) for prompt in (args.instance_prompt, args.validation_prompt) if prompt}
    return grid(list(rows.values()), list(rows))


def draw(pipe, args: argparse.Namespace, prompt: str) -> list:
    """--num_validation_images pictures of a prompt, from the same noise every time."""
    from common.training import draw_pictures, step_generator

    generators = [step_generator(args.seed, number, 4) for number in range(args.num_validation_images)]
    return draw_pictures(pipe, [prompt] * len(generators), generators, args.resolution, args.num_inference_steps,
                         args.guidance_scale)  # fmt: skip


def personalise(pictures: str, prompt: str, output_dir: str = "outputs/lipschitz_personalize/mine", **flags):
    """A call for notebooks: train on a folder of pictures that `prompt` names, and return the pipeline that draws the
    subject. flags: of this script, by name."""
    from lipschitz_personalize.loading import load_trained

    given = {"instance_data_dir": pictures, "instance_prompt": prompt, "output_dir": output_dir, **flags}
    train(options.parse(as_flags(given)))
    return load_trained(output_dir, flags.get("pretrained_model_name_or_path", "picturebook"), flags.get("device"))


if __name__ == "__main__":
    main()
