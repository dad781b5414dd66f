"""OFT (Qiu et al., NeurIPS 2023): every attention projection turned by a block-diagonal rotation, through peft.

    python -m eval.baselines.oft
    python -m eval.baselines.oft --instance_data_dir dog --instance_prompt "a photo of qwe dog" \
        --class_prompt "a photo of dog" --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Defaults as in the authors' scripts: four blocks, constrained (COFT, eps 6e-5), 6e-5, 2,005 steps, 200 class pictures.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # python eval/baselines/oft.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.flags import number
from common.runs import InputError, atomic_path, make_parser, script
from common.training_flags import add_subject_flags, add_training_flags, parse_training

PICTUREBOOK_PRESET = {"max_train_steps": 100, "learning_rate": 0.003, "coft": False, "train_batch_size": 2,
                      "num_class_images": 24}  # fmt: skip
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]  # of every attention layer
ADAPTER = "oft"  # folder of the adapter inside --output_dir
TOKEN = "qwe"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--blocks", type=number(int, 1), default=4, help="blocks r of each rotation; the authors' is 4")
    add("--coft", action=argparse.BooleanOptionalAction, default=True, help="keep the rotations near the identity")
    add("--coft_eps", type=number(float, 0), default=6e-5,
        help="how near, see --coft: times the square of a block's side, as the authors' code has it")  # fmt: skip
    add("--cayley_neumann", action=argparse.BooleanOptionalAction, default=False,
        help="peft's five-term series in place of the Cayley transform's inverse")  # fmt: skip
    add_training_flags(parser, output_dir="outputs/oft", max_train_steps=2005, learning_rate=6e-5)
    add_subject_flags(parser, with_prior_preservation=True, num_class_images=200)
    args = parse_training(parser, argv, PICTUREBOOK_PRESET)
    if args.with_prior_preservation and args.class_data_dir is None:
        args.class_data_dir = str(Path(args.output_dir) / "class_pictures")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from eval.baselines import subject_training as shared

    if args.print_config:
        return shared.print_config(args)
    import torch
    from tqdm import tqdm

    from common import training
    from common.pipelines import encode_prompt
    from common.runs import measure

    shared.give_subject(args, f"a photo of {TOKEN} {{}}", "a photo of {}")
    accelerator = training.make_accelerator(args, "oft")
    with measure() as cost:
        pipe, resolution = shared.load_frozen(args, accelerator.device)
        prompts, sets = [args.instance_prompt], [training.load_pictures(args.instance_data_dir, resolution)]
        if args.with_prior_preservation:
            training.generate_class_pictures(
                pipe, args.class_prompt, args.class_data_dir, args.num_class_images, resolution, args.sample_batch_size,
                args.seed, accelerator.process_index, accelerator.num_processes,
            )  # fmt: skip
            accelerator.wait_for_everyone()
            prompts.append(args.class_prompt)
            sets.append(training.load_pictures(args.class_data_dir, resolution))
        who = training.identity(args, base=training.fingerprint(pipe.unet.state_dict()))
        unet = add_rotations(pipe.unet, args)
        trained = {name: tensor for name, tensor in unet.named_parameters() if tensor.requires_grad}
        optimizer, schedule = training.make_optimizer(trained.values(), args, accelerator.num_processes)
        optimizer, scaler = accelerator.prepare(optimizer), accelerator.scaler
        first = training.resume_training(args, trained, optimizer, schedule, who, scaler)
        alpha_bar, kind = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
        with torch.no_grad():
            conds = [encode_prompt(pipe, [prompt] * args.train_batch_size).embeds for prompt in prompts]
        weights = (1.0, args.prior_loss_weight)
        losses, micros = [], args.gradient_accumulation_steps

        for step in tqdm(range(first, args.max_train_steps), "steps", disable=None):
            total = 0.0
            for micro in range(micros):
                for which, (pictures, cond) in enumerate(zip(sets, conds, strict=True)):  # the subject, then its class
                    x, generator = shared.batch_of(args, pictures, step, micro, accelerator, resolution, which)
                    z_0, noise, t = shared.encoded(pipe, x, len(alpha_bar), generator)
                    with accelerator.autocast():
                        output = unet(training.noised(alpha_bar, z_0, noise, t), t, cond).sample
                    wanted = training.target(kind, alpha_bar, z_0, noise, t)
                    loss = weights[which] * ((output.float() - wanted) ** 2).mean() / micros
                    accelerator.backward(loss)
                    total += loss.item()
            shared.check_finite(total, step)
            losses.append(total)
            accelerator.log({"loss": total}, step)
            shared.average_gradients(accelerator, list(trained.values()))
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(trained.values(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            due = (step + 1) % args.checkpointing_steps == 0 and step + 1 < args.max_train_steps
            if accelerator.is_main_process and due:
                training.save_training(args, step + 1, trained, optimizer, schedule, who, scaler)
            if accelerator.is_main_process and args.validation_prompt and (step + 1) % args.validation_steps == 0:
                shared.validate(args, pipe, args.validation_prompt, f"validation-{step + 1}.png")
    if accelerator.is_main_process:
        with atomic_path(Path(args.output_dir) / ADAPTER) as temporary:
            unet.save_pretrained(temporary)
        count = sum(tensor.numel() for tensor in trained.values())
        seconds = training.whole_seconds(cost.seconds, first, args.max_train_steps)
        costs = {"seconds": seconds, "peak_memory_mb": cost.peak_memory_mb}
        shared.finish(args, pipe, args.validation_prompt or prompts[0], losses, trainable_parameters=count, **costs)
    accelerator.end_training()


def add_rotations(unet, args: argparse.Namespace):
    """The UNet inside a peft model: W' = W blockdiag(R)^T, R = (I + Q)(I - Q)^-1 with Q skew-symmetric, at first 0.

    Raises InputError for a number of blocks that does not divide a layer's width (peft would take the next that does).
    """
    from peft import OFTConfig, get_peft_model

    for name, layer in unet.named_modules():
        if name.endswith(tuple(PROJECTIONS)) and layer.in_features % args.blocks:
            raise InputError(f"--blocks {args.blocks} does not divide the {layer.in_features} inputs of {name}")
    config = OFTConfig(r=args.blocks, oft_block_size=0, target_modules=PROJECTIONS, coft=args.coft, eps=args.coft_eps,
                       use_cayley_neumann=args.cayley_neumann)  # fmt: skip
    return give_authors_radius(get_peft_model(unet, config))


def give_authors_radius(turned):
    """The peft model with COFT's radius as in the authors' code: each block's Q keeps to ||Q|| <= eps d^2 / sqrt(r), d
    the block's side.

    peft leaves d^2 out: with eps 6e-5 and four blocks no weights could then change by more than a relative 4e-5. It
    projects again whenever it merges, so that what loads an adapter needs the radius too.
    """
    from peft.tuners.oft.layer import OFTRotationModule

    for module in turned.modules():
        if isinstance(module, OFTRotationModule):
            module.eps *= module.block_size**2
    return turned


def load(folder: Path, model: str, device: str | None = None, token: str = TOKEN):
    """(the base model with the rotations merged in, token). InputError if they are not there or do not fit."""
    from peft import PeftModel

    from common.model_files import one_line
    from common.pipelines import load_pipeline

    pipe, adapter = load_pipeline(model, device), Path(folder) / ADAPTER
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{folder} holds no {ADAPTER}/adapter_model.safetensors; python -m eval.baselines.oft trains one"
        )
    try:
        pipe.unet = give_authors_radius(PeftModel.from_pretrained(pipe.unet, adapter)).merge_and_unload()
    except Exception as problem:  # peft raises all kinds where names or shapes do not fit
        raise InputError(f"the rotations in {adapter} do not fit this model: {one_line(problem)}") from None
    return pipe, token


if __name__ == "__main__":
    main()
