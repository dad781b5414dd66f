"""Personalised models under SPDInv (paper, Sec. 3.3): files of other trainings become part of a pipeline's weights."""

import argparse

import torch
from diffusers import DiffusionPipeline

from common.encoders import load_clip
from common.images import load_image
from common.pipelines import PRECISIONS, chosen_resolution, load_pipeline
from spdinv.customised.elite import Elite, add_subject, load_elite, use_key_values
from spdinv.customised.loading import load_adapter


def load(args: argparse.Namespace) -> tuple[DiffusionPipeline, int, Elite | None]:
    """The pipeline that the model flags name, the side of its pictures, and ELITE where it was asked for. What
    --adapter and --elite ask for is done to the pipeline, and what was found is said. Where --elite has no picture of
    the subject yet, what comes back is for `add_subject`, once there is one."""
    torch.manual_seed(args.seed)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device, PRECISIONS[args.mixed_precision])
    resolution, elite = chosen_resolution(pipe, args.resolution), None
    for path in args.adapter or []:
        print(f"{path}: {load_adapter(pipe, path)}")
    if args.elite:
        elite = load_elite(args.elite, load_clip(args.elite_clip, args.device))
        if args.elite_key_values:
            use_key_values(pipe, elite, args.elite)
        pipe.scheduler.register_to_config(steps_offset=0)  # 980 ... 20, 0 for T = 50, as in the released ELITE run
        if reference := args.reference_image_path or getattr(args, "image_path", None):
            add_subject(pipe, elite, load_image(reference), words_of(args))
    return pipe, resolution, elite


def words_of(args: argparse.Namespace) -> slice:
    """--elite_token_index as a slice of the five words."""
    return slice(None) if args.elite_token_index == "full" else slice(first := int(args.elite_token_index), first + 1)
