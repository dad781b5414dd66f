"""OFT (Qiu et al., NeurIPS 2023): every attention projection turned by a block-diagonal rotation, through peft.

    python -m eval.baselines.oft
    python -m eval.baselines.oft --instance_data_dir dog --instance_prompt "a photo of qwe dog" \
        --class_prompt "a photo of dog" --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

Defaults as in the authors' scripts: four blocks, constrained (COFT, eps 6e-5), 6e-5, 2,005 steps, 200 class pictures.
The loop is that of lipschitz_personalize.train without its penalty.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # python eval/baselines/oft.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.flags import number
from common.runs import InputError, atomic_path, make_parser, script
from common.training_flags import add_subject_flags, add_training_flags
from lipschitz_personalize.options import parse_plain
from lipschitz_personalize.train import train

PICTUREBOOK_PRESET = {"max_train_steps": 100, "learning_rate": 0.003, "coft": False, "train_batch_size": 2,
                      "num_class_images": 24}  # fmt: skip
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]  # of every attention layer
ADAPTER = "oft"  # folder of the adapter inside --output_dir


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--blocks", type=number(int, 1), default=4, help="blocks r of each rotation; the authors' is 4")
    add("--coft", action=argparse.BooleanOptionalAction, default=True, help="keep the rotations near the identity")
    add("--coft_eps", type=number(float, 0), default=6e-5,
        help="how near, see --coft: times the square of a block's side, as the authors' code has it")  # fmt: skip
    add_training_flags(parser, output_dir="outputs/oft", max_train_steps=2005, learning_rate=6e-5)
    add_subject_flags(parser, with_prior_preservation=True, num_class_images=200)
    return parse_plain(parser, argv, PICTUREBOOK_PRESET, parameter_space="oft")


@script
def main(argv: list[str] | None = None) -> None:
    train(parse(argv), rotations)


def rotations(pipe, args: argparse.Namespace):
    """The trained tensors and how they are saved (lipschitz_personalize's Space)."""
    from lipschitz_personalize.parameter_spaces import Space

    turned = add_rotations(pipe.unet, args)

    def save(folder: Path) -> None:
        with atomic_path(folder / ADAPTER) as temporary:
            turned.save_pretrained(temporary)

    return Space({name: tensor for name, tensor in turned.named_parameters() if tensor.requires_grad}, save)


def add_rotations(unet, args: argparse.Namespace):
    """The UNet inside a peft model: W' = W blockdiag(R)^T, R = (I + Q)(I - Q)^-1 with Q skew-symmetric, at first 0.

    Raises InputError for a number of blocks that does not divide a layer's width (peft would take the next that does).
    """
    from peft import OFTConfig, get_peft_model

    for name, layer in unet.named_modules():
        if name.endswith(tuple(PROJECTIONS)) and layer.in_features % args.blocks:
            raise InputError(f"--blocks {args.blocks} does not divide the {layer.in_features} inputs of {name}")
    config = OFTConfig(r=args.blocks, oft_block_size=0, target_modules=PROJECTIONS, coft=args.coft, eps=args.coft_eps,
                       use_cayley_neumann=False)  # fmt: skip
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


def load(folder: Path, model: str, device: str | None = None):
    """The base model with the rotations merged in. InputError if they are not there or do not fit."""
    from peft import PeftModel

    from common.files import refused_as
    from common.pipelines import load_pipeline

    pipe, adapter = load_pipeline(model, device), Path(folder) / ADAPTER
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no {ADAPTER}/adapter_model.safetensors; python -m eval.baselines.oft trains "
                         "one")  # fmt: skip
    with refused_as(f"the rotations in {adapter} do not fit this model"):
        pipe.unet = give_authors_radius(PeftModel.from_pretrained(pipe.unet, adapter)).merge_and_unload()
    return pipe


if __name__ == "__main__":
    main()
