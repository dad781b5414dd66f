"""What a training shows of itself: pictures with holes, references, results."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from common.flags import is_picturebook_folder
from common.images import grid, to_pil
from image_inpaint.data.benchmark import SCENES, Subject, crop_to, picturebook_items
from image_inpaint.data.examples import Examples
from image_inpaint.masks import Box, box_mask, padded
from image_inpaint.painting import paint
from image_inpaint.sampling import Sampling

STEPS = 25
Shown = tuple[Image.Image, torch.Tensor, Image.Image]  # picture, fill [H, W], reference


def in_place(picture: Image.Image, box: Box, reference: Image.Image) -> Shown:
    """With a hole as a user draws it, a quarter of the box's longer side around the box."""
    size, rim = (picture.height, picture.width), max(box[2] - box[0], box[3] - box[1]) // 4
    return picture, box_mask(padded(box, size, rim), size), reference


def of_subject(args: argparse.Namespace, photographs: list[tuple[Image.Image, Box]]) -> list[Shown]:
    """Of the picturebook the subject's own rooms, unseen in training; otherwise the photographs themselves, each with
    the next one as the reference."""
    from common.picturebook.benchmarks import ensure_subjects

    folder, count = Path(args.instance_data_dir), args.num_validation_images
    crops = [crop_to(picture, box) for picture, box in photographs]
    for split in ("validation", "test") if is_picturebook_folder(args.pretrained_model_name_or_path) else ():
        if ensure_subjects(split).resolve() == folder.parent.resolve():
            subject = Subject(folder.name, "", folder, tuple(crops))
            items = picturebook_items([subject], min(count, SCENES), split)
            return [(item.source, item.fill, item.reference) for item in items]
    return [in_place(*one, crop) for one, crop in zip(photographs[:count], crops[1:] + crops[:1], strict=False)]


def of_domain(examples: Examples, count: int) -> list[Shown]:
    """The first pictures, each with its own thing as the reference."""
    drawn = [examples.get(i, torch.Generator().manual_seed(i)) for i in range(min(count, examples.count))]
    return [in_place(to_pil(picture), box, crop_to(to_pil(picture), box)) for picture, box in drawn]


def with_hole(picture: Image.Image, fill: torch.Tensor) -> Image.Image:
    """The picture with its hole in grey."""
    mask = Image.fromarray((255 * fill).byte().numpy())
    return Image.composite(Image.new("RGB", picture.size, (128, 128, 128)), picture, mask)


def comparison(shown: Sequence[Shown], results: Sequence[Image.Image]) -> Image.Image:
    """A grid: picture with its hole, reference, result."""
    rows = [[with_hole(picture, fill), reference.resize(picture.size), result]
            for (picture, fill, reference), result in zip(shown, results, strict=True)]  # fmt: skip
    return grid(rows, column_labels=["picture and hole", "reference", "result"])


def sheet(pipe, shown: Sequence[Shown], seed: int) -> Image.Image:
    """What the model makes of them. The UNet's mode is left as it was."""
    training = pipe.unet.training
    pipe.unet.eval()
    seeds = [seed + row for row in range(len(shown))]
    painted = paint(pipe, *zip(*shown, strict=True), seeds, Sampling(num_inference_steps=STEPS))
    pipe.unet.train(training)
    return comparison(shown, painted)
