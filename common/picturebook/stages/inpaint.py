"""Stage inpaint: image-guided inpainting on top of the text-to-image UNet, as Paint-by-Example is built on SD 1.4.

The UNet gains five input channels (the latents of the picture without its hole, and a mask that is 1 where the picture
is kept), which start at zero. Its context is one token: the class token of CLIP's frozen picture tower, shown a crop of
the thing, through a small trained mapper. A picture is its own target: the thing that is cut out of it is what is to be
put back (Yang et al. 2023). What does not change with training is computed once and kept on disk.
"""

from __future__ import annotations

import hashlib
import math
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from PIL import Image, ImageDraw, ImageFilter
from torch import nn
from tqdm import tqdm
from transformers import CLIPModel

from common.picturebook.brush import CANVAS, SIZE
from common.picturebook.drawing import Drawing, draw
from common.picturebook.hashes import drawing_hash
from common.picturebook.scenes import Scene
from common.picturebook.stages.corpus import Corpus, order
from common.picturebook.stages.training import DEVICE, Run, fast, load, save
from common.picturebook.stages.unet import SNR_CAP, latent_statistics, new_scheduler

BATCH, PEAK, UNCONDITIONAL = 32, 5e-4, 0.2
VIEWS = 2  # holes and crops per scene
MOST_THINGS, BLOCK = 3, 2000
LATENT = SIZE // 4

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two are outside


def box_of(mask: np.ndarray) -> Box | None:
    """The smallest box around the ones of a mask [H, W]; None around nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def boxes_in(drawing: Drawing) -> np.ndarray:
    """int16 [3, 4]: the box of each thing, -1 where there is none or nothing of it is seen."""
    boxes = np.full((MOST_THINGS, 4), -1, np.int16)
    for row, mask in enumerate(drawing.masks):
        boxes[row] = box_of(mask) or -1
    return boxes


def boxes_of_block(scenes: list[Scene]) -> np.ndarray:
    return np.stack([boxes_in(draw(scene)) for scene in scenes])


def all_boxes(corpus: Corpus, work: Path) -> np.ndarray:
    """int16 [count, 3, 4]: the boxes of every training picture, drawn once by all cores and kept on disk."""
    path = work / f"boxes_{len(corpus)}_{drawing_hash()}.npy"
    if not path.exists():
        blocks = [corpus.scenes[start : start + 200] for start in range(0, len(corpus), 200)]
        with ProcessPoolExecutor() as pool:
            found = list(tqdm(pool.map(boxes_of_block, blocks), total=len(blocks), desc="boxes", mininterval=10))
        np.save(path.with_suffix(".part.npy"), np.concatenate(found))
        path.with_suffix(".part.npy").replace(path)
    return np.load(path)


def enlarged(box: Box, rng: random.Random, most: float = 0.4) -> Box:
    """Each side moved outwards by up to `most` of the room there."""
    left, top, right, bottom = box
    room = (left, top, SIZE - right, SIZE - bottom)
    a, b, c, d = (rng.randint(0, int(most * space)) for space in room)
    return left - a, top - b, right + c, bottom + d


def hole_of(box: Box, rng: random.Random) -> np.ndarray:
    """float32 [64, 64], 1 in the hole: the enlarged box, or as often a rough shape as a hand draws it around it."""
    left, top, right, bottom = enlarged(box, rng)
    canvas = Image.new("L", (CANVAS, CANVAS))
    scale, pen = CANVAS / SIZE, ImageDraw.Draw(canvas)
    if rng.random() < 0.5:
        pen.rectangle((left * scale, top * scale, right * scale - 1, bottom * scale - 1), fill=255)
    else:
        middle, half = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
        points = []
        for k in range(24):
            angle, radius = 2 * math.pi * k / 24, rng.uniform(1.0, 1.3)
            turned = (math.cos(angle), math.sin(angle))
            points.append(tuple(scale * (m + radius * h * t) for m, h, t in zip(middle, half, turned, strict=True)))
        pen.polygon(points, fill=255)
        pen.rectangle([round(side * scale) - (k > 1) for k, side in enumerate(box)], fill=255)  # all of the thing
    return (np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)) > 127).astype(np.float32)


def reference_of(picture: Image.Image, box: Box, rng: random.Random | None = None) -> Image.Image:
    """The thing as the picture tower is shown it: its box with a pixel around, squashed to 64x64; with `rng` flipped,
    turned and blurred at random, as Paint-by-Example's references are."""
    left, top, right, bottom = box
    crop = picture.crop((max(left - 1, 0), max(top - 1, 0), min(right + 1, SIZE), min(bottom + 1, SIZE)))
    crop = crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng is None:
        return crop
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        edge = tuple(int(value) for value in np.asarray(crop)[[0, -1]].mean((0, 1)))
        crop = crop.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, fillcolor=edge)
    if rng.random() < 0.3:
        crop = crop.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    return crop


def on_latents(keep: torch.Tensor) -> torch.Tensor:
    """A mask [B, 1, 64, 64] on the latent grid, bilinear as in Paint-by-Example's code: soft at the rim."""
    return F.interpolate(keep, (LATENT, LATENT), mode="bilinear")


def as_batch(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures [B, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


def new_inpainter(unet: UNet2DConditionModel, clip: CLIPModel) -> nn.ModuleDict:
    """{"unet": the given text-to-image one with nine input channels, "encoder": the picture tower and an untrained
    mapper}."""
    torch.manual_seed(0)
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, first.new_zeros(len(first), 5, *first.shape[2:])], dim=1)
    wide = UNet2DConditionModel.from_config(unet.config, in_channels=9)
    wide.load_state_dict(weights)
    encoder = PaintByExampleImageEncoder(clip.config.vision_config, proj_size=unet.config.cross_attention_dim)
    encoder.model.load_state_dict(clip.vision_model.state_dict())
    return nn.ModuleDict({"unet": wide, "encoder": encoder}).float()


def token(encoder: PaintByExampleImageEncoder, features: torch.Tensor) -> torch.Tensor:
    """The trained part of the encoder: class tokens [B, D] -> context [B, 1, D']."""
    return encoder.proj_out(encoder.final_layer_norm(encoder.mapper(features[:, None])))


@torch.no_grad()
def prepare(corpus: Corpus, vae: AutoencoderKL, tower: nn.Module, work: Path) -> dict[str, torch.Tensor]:
    """What training reads, computed once: per scene and view the latents of the picture without its hole, float16
    [count, VIEWS, 4, 16, 16]; the mask, 1 = keep, uint8 of 255ths [count, VIEWS, 1, 16, 16]; and the class token of the
    thing's crop, float16 [count, VIEWS, D]. A block is a file; a killed run goes on with the next one.
    """
    boxes, parts = all_boxes(corpus, work), []
    weights = [*vae.encoder.state_dict().values(), *tower.state_dict().values()]
    name = hashlib.sha256(b"".join(weight.cpu().numpy().tobytes() for weight in weights)).hexdigest()[:12]
    vae.to(DEVICE, memory_format=torch.channels_last), tower.to(DEVICE)
    for start in tqdm(range(0, len(corpus), BLOCK), desc="holes and crops", mininterval=10):
        path = work / f"inpaint_{name}_{start}_{min(start + BLOCK, len(corpus))}.pt"
        if not path.exists():
            rows = [prepare_rows(corpus, boxes, range(k, min(k + 50, start + BLOCK, len(corpus))), vae, tower)
                    for k in range(start, min(start + BLOCK, len(corpus)), 50)]  # fmt: skip
            save(path, **{key: torch.cat([row[key] for row in rows]) for key in rows[0]})
        parts.append({key: value.cpu() for key, value in load(path).items()})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def prepare_rows(corpus: Corpus, boxes: np.ndarray, indices: range, vae, tower) -> dict[str, torch.Tensor]:
    crops, keeps = [], []
    for index in indices:
        picture = Image.fromarray(corpus.pictures[index])
        for view in range(VIEWS):
            rng = random.Random(f"inpaint {index} {view}")
            box = tuple(int(side) for side in rng.choice([box for box in boxes[index] if box[0] >= 0]))
            crops.append(reference_of(picture, box, rng))
            keeps.append(1 - hole_of(box, rng))
    keep = torch.from_numpy(np.stack(keeps))[:, None]
    pictures = (corpus.batch(indices) * 2 - 1).repeat_interleave(VIEWS, 0)
    masked = (pictures * keep).to(DEVICE, memory_format=torch.channels_last)  # the hole is mid-grey
    with fast():
        mean = vae.encode(masked).latent_dist.mean
    found = {
        "masked": mean.half(),
        "keep": (255 * on_latents(keep)).round().byte(),
        "features": tower(pixel_values=as_batch(crops).to(DEVICE)).pooler_output.half(),
    }
    return {key: value.cpu().unflatten(0, (len(indices), VIEWS)) for key, value in found.items()}


def train(
    corpus: Corpus, vae: AutoencoderKL, model: nn.ModuleDict, work: Path, steps: int, compiled: bool = False
) -> nn.ModuleDict:
    """The trained {"unet", "encoder"}. model: to go on from where no checkpoint is left, a new one or the shipped one;
    its picture tower stays as it is. compiled: torch.compile."""
    statistics = latent_statistics(corpus, vae, work)
    model.requires_grad_(True)["encoder"].model.requires_grad_(False)
    known = prepare(corpus, vae, model["encoder"].model.eval(), work)
    scale, alpha_bar = vae.config.scaling_factor, new_scheduler().alphas_cumprod
    model.to(memory_format=torch.channels_last)
    model["unet"].set_attn_processor(AttnProcessor())  # faster than SDPA backwards for heads this small
    predict = torch.compile(model["unet"], dynamic=False) if compiled else model["unet"]
    run = Run("inpaint", work, model, steps, PEAK, ema=0.999, betas=(0.9, 0.99), weight_decay=0.01)
    for step in run.todo():
        generator = torch.Generator().manual_seed(step)
        indices = torch.from_numpy(order(len(corpus), BATCH, step))
        views = torch.randint(0, VIEWS, (BATCH,), generator=generator)
        masked, keep, features = (known[key][indices, views] for key in ("masked", "keep", "features"))
        mean, std = statistics[indices].float().unbind(1)
        latents = scale * (mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(0, 1000, (BATCH,), generator=generator)
        a = alpha_bar[t][:, None, None, None]
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        channels = torch.cat([noisy, scale * masked.float(), keep.float() / 255], dim=1)
        drop = (torch.rand(BATCH, generator=generator) < UNCONDITIONAL).to(DEVICE)[:, None, None]
        context = token(model["encoder"], features.float().to(DEVICE))
        context = torch.where(drop, model["encoder"].uncond_vector, context)
        channels = channels.to(DEVICE, memory_format=torch.channels_last)
        with fast():
            output = predict(channels, t.to(DEVICE), context).sample.float()
        difference = (output - noise.to(DEVICE)).square()
        error = difference.mean((1, 2, 3))
        hole = 1 - keep.float().to(DEVICE) / 255
        snr = (alpha_bar[t] / (1 - alpha_bar[t])).to(DEVICE)
        loss = (error * snr.clamp(max=SNR_CAP) / snr).mean()  # min-SNR, as in stage unet
        run.descend(step, loss, error=error.mean(), in_hole=(difference * hole).sum() / (4 * hole.sum()))
    model["unet"].set_default_attn_processor()
    return run.finish()
