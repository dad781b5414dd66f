"""Personalise a text-to-image model on a few pictures, and keep its weights near the base model's (Alg. 1).

    python -m lipschitz_personalize.train --instance_data_dir DOG --instance_prompt "a photo of a sks dog"

With --l2_reg_weight 0 this is plain DreamBooth, Custom Diffusion or DreamBooth-LoRA, to the bit; with
--with_prior_preservation, too, their usual form. Without arguments: a subject of the picturebook.
"""

import argparse
import json
import math
from pathlib import Path

from common.runs import InputError, measure, script, write_config, write_json
from lipschitz_personalize import options


def load(args: argparse.Namespace, device):
    """The frozen pipeline. Full fine-tuning computes in float32 (under autocast); the others keep what they do not
    train in --mixed_precision, as diffusers' scripts do."""
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    from lipschitz_personalize.objectives import backbone_of, load_backbone

    half = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.mixed_precision]
    dtype = torch.float32 if args.parameter_space == "full" else half
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

    from common.training import step_generator
    from lipschitz_personalize import objectives, regularizer

    if args.l2_reg_weight == 0:
        return None
    factors = regularizer.layer_factors(space.parameters, args.l2_layer_weights)
    if args.l2_lipschitz:
        prompt = args.instance_prompt if space.trains_text else args.class_prompt or args.instance_prompt

        def output(share: float):
            z, t = objectives.random_noisy(pipe, share, step_generator(args.seed, 0, 2, int(100 * share)))
            return lambda: objectives.predict(pipe, z, t, objectives.encode_text(pipe, [prompt], args.resolution))

        measured = regularizer.lipschitz_factors(
            space.parameters, [output(share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)], step_generator(args.seed, 0, 3),
            args.l2_convention, space.counts,
        )  # fmt: skip
        factors = {name: factors[name] * measured[name] for name in factors}
    return regularizer.make_regularizer(
        space.parameters, args.l2_reg_weight, args.l2_convention, space.counts, factors, space.change,
        getattr(torch, args.l2_base_dtype), "cpu" if args.l2_base_device == "cpu" else None,
    )  # fmt: skip


def draw_grid(pipe, args: argparse.Namespace, paths: list[Path]):
    """The subject, then samples of its prompt and of --validation_prompt."""
    from common.images import center_crop_resize, grid, load_image

    rows = {"the subject": [center_crop_resize(load_image(path), args.resolution) for path in paths[:6]]}
    for prompt in filter(None, (args.instance_prompt, args.validation_prompt)):
        rows[prompt] = draw(pipe, args, prompt)
    return grid(list(rows.values()), list(rows))


def draw(pipe, args: argparse.Namespace, prompt: str) -> list:
    """--num_validation_images pictures of a prompt, from the same noise every time."""
    from common.training import draw_pictures, step_generator

    count = args.num_validation_images
    generators = [step_generator(args.seed, number, 4) for number in range(count)]
    return draw_pictures(
        pipe, [prompt] * count, generators, args.resolution, args.num_inference_steps, args.guidance_scale
    )


@script
def main(argv: list[str] | None = None) -> None:
    args = options.parse(argv)
    if args.print_config:
        print(json.dumps(vars(args), indent=2))
        return

    import torch
    from tqdm import tqdm

    from common import training
    from common.images import grid, save_png
    from lipschitz_personalize import batches
    from lipschitz_personalize.objectives import add_noise, network, predict, squared_error
    from lipschitz_personalize.parameter_spaces import check_folder

    check_folder(Path(args.output_dir), args)
    accelerator = training.make_accelerator(args, "lipschitz_personalize")
    torch.manual_seed(args.seed)  # the first values of LoRA's factors
    paths = batches.use_picturebook_subject(args)
    pipe = load(args, accelerator.device)
    batches.check_resolution(pipe, args)
    base = training.fingerprint(network(pipe).state_dict())
    class_seconds = batches.ensure_class_pictures(pipe, args, accelerator)
    space = prepare(pipe, args)
    weights = list(space.parameters.values())
    given = batches.sources(pipe, args, paths, space.trains_text)
    regularizer = penalty(pipe, args, space)
    if args.gradient_checkpointing:
        network(pipe).enable_gradient_checkpointing()
    optimizer, schedule = training.make_optimizer(weights, args, accelerator.num_processes)
    optimizer = accelerator.prepare(optimizer)
    who = training.identity(args, base=base)
    start = training.resume_training(args, space.parameters, optimizer, schedule, who, accelerator.scaler)
    output = Path(args.output_dir)

    losses: list[float] = []
    bar = tqdm(range(start, args.max_train_steps), "training", disable=None if accelerator.is_main_process else True)
    with measure() as cost:
        for step in bar:
            loss_sum = 0.0
            for micro in range(args.gradient_accumulation_steps):
                process, processes = accelerator.process_index, accelerator.num_processes
                generator = training.step_generator(args.seed, step, micro, process)
                batch = batches.next_batch(pipe, args, given, step, micro, process, processes, generator)
                noisy = add_noise(pipe, batch.latents, generator, args.precondition_outputs)  # z_t, eps
                with accelerator.autocast():
                    prediction = predict(pipe, noisy.z, noisy.t, batch.cond)  # eps_theta(z_t, t, c)
                sum_channels = args.mask_loss == "sum"
                error = squared_error(prediction, noisy, batch.mask, sum_channels)  # Alg. 1: ||eps - eps_theta||^2
                loss = error[: batch.instances].mean()
                if args.with_prior_preservation:
                    loss = loss + args.prior_loss_weight * error[batch.instances :].mean()
                accelerator.backward(loss / args.gradient_accumulation_steps)
                loss_sum += loss.item() / args.gradient_accumulation_steps
            if not math.isfinite(loss_sum):
                raise InputError(f"the loss is {loss_sum} at step {step}: lower --learning_rate or --l2_reg_weight")
            if accelerator.num_processes > 1:
                for tensor in weights:
                    tensor.grad = accelerator.reduce(tensor.grad, "mean")
            accelerator.unscale_gradients(optimizer)
            if regularizer is not None:
                regularizer.add_gradient()  # Alg. 1: + lambda sum_i ||theta_i - theta_i^base||^2, its gradient
            if args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(weights, args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            losses.append(loss_sum)
            bar.set_postfix(loss=f"{loss_sum:.4f}")
            accelerator.log({"loss": loss_sum, "lr": schedule.get_last_lr()[0]}, step)
            if not accelerator.is_main_process:
                continue
            if (step + 1) % args.checkpointing_steps == 0 and step + 1 < args.max_train_steps:
                training.save_training(args, step + 1, space.parameters, optimizer, schedule, who, accelerator.scaler)
            if args.validation_prompt and (step + 1) % args.validation_steps == 0 and step + 1 < args.max_train_steps:
                save_png(
                    output / "validation" / f"{step + 1:06d}.png", grid([draw(pipe, args, args.validation_prompt)])
                )

    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    if any(not tensor.isfinite().all() for tensor in weights):
        raise InputError("the weights became NaN: lower --learning_rate or --l2_reg_weight")
    space.save(output)
    write_config(output, args, base_weights=base)
    metrics = {
        "loss": sum(losses[-50:]) / max(1, len(losses[-50:])),
        "penalty": regularizer.value() if regularizer else 0.0,
        "trainable_parameters": sum(tensor.numel() for tensor in weights),
        "file_bytes": sum(path.stat().st_size for path in output.rglob("*.safetensors")),
        "seconds": training.whole_seconds(cost.seconds, start, args.max_train_steps),
        "class_seconds": class_seconds,
        "peak_memory_mb": cost.peak_memory_mb,
    }
    save_png(output / "grid.png", draw_grid(pipe, args, paths))
    write_json(output / "metrics.json", metrics)
    print(f"{len(losses)} steps in {cost.seconds:.0f} s; weights and pictures in {output}, see {output / 'grid.png'}")


if __name__ == "__main__":
    main()
