"""What a training shows of itself: pictures with holes, references, results."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from common.flags import is_picturebook_folder
from common.images import grid, to_pil
from image_inpaint.data.benchmark import Subject, crop_to, picturebook_items, split_of
from image_inpaint.data.examples import Examples
from image_inpaint.masks import Box, loose_mask
from image_inpaint.painting import paint
from image_inpaint.sampling import Sampling

LOOSENESS, STEPS = 0.5, 25
Shown = tuple[Image.Image, torch.Tensor, Image.Image]  # picture, fill [H, W], reference


def in_place(picture: Image.Image, box: Box, reference: Image.Image) -> Shown:
    return picture, loose_mask(box, (picture.height, picture.width), LOOSENESS), reference


def of_subject(args: argparse.Namespace, photographs: list[tuple[Image.Image, Box]]) -> list[Shown]:
    """On the picturebook the subject's own rooms, unseen in training; otherwise the photographs themselves, each with
    the next one as the reference."""
    folder = Path(args.instance_data_dir)
    crops = [crop_to(picture, box) for picture, box in photographs]
    subject = Subject(folder.name, "", folder, tuple(crops))
    split = split_of(subject) if is_picturebook_folder(args.pretrained_model_name_or_path) else None
    if split:
        items = picturebook_items([subject], args.num_validation_images, split)
        return [(item.source, item.fill, item.reference) for item in items]
    following = crops[1:] + crops[:1]
    shown = [in_place(*photograph, crop) for photograph, crop in zip(photographs, following, strict=True)]
    return shown[: args.num_validation_images]


def of_domain(examples: Examples, count: int) -> list[Shown]:
    """The first pictures, each with its own thing as the reference."""
    shown = []
    for index in range(min(count, examples.count)):
        tensor, box = examples.get(index, torch.Generator().manual_seed(index))
        picture = to_pil(tensor)
        shown.append(in_place(picture, box, crop_to(picture, box)))
    return shown


def with_hole(picture: Image.Image, fill: torch.Tensor) -> Image.Image:
    """The picture with its hole in grey."""
    mask = Image.fromarray((255 * fill).byte().numpy())
    return Image.composite(Image.new("RGB", picture.size, (128, 128, 128)), picture, mask)


def sheet(pipe, shown: list[Shown], seed: int) -> Image.Image:
    """A grid: picture with its hole, reference, result. The UNet's mode is left as it was."""
    training = pipe.unet.training
    pipe.unet.eval()
    pictures, fills, references = zip(*shown, strict=True)
    seeds = [seed + row for row in range(len(shown))]
    painted = paint(pipe, pictures, fills, references, seeds, Sampling(num_inference_steps=STEPS))
    pipe.unet.train(training)
    rows = [[with_hole(p, f), r.resize(p.size), made]
            for p, f, r, made in zip(pictures, fills, references, painted, strict=True)]  # fmt: skip
    return grid(rows, column_labels=["picture and hole", "reference", "result"])
