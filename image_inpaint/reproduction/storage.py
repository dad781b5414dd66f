"""What low-rank updates of Stable Diffusion take, and what the paper's 2 to 40 MB and "0.0002 %" can be (Table 1)."""

import functools
import itertools

import torch
from diffusers import UNet2DConditionModel

from common.tables import text_table
from image_inpaint.lora import TARGETS, add_lora


@functools.cache
def stable_diffusion() -> UNet2DConditionModel:
    """Stable Diffusion 1.x with nine channels, without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, in_channels=9, cross_attention_dim=768, attention_head_dim=8,
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
        )  # fmt: skip


@functools.cache
def numbers_of_rank_1(targets: str) -> int:
    """How many an update of rank 1 has; one of rank r has r times as many."""
    with torch.device("meta"):
        updates = add_lora(stable_diffusion(), 1, 1, targets)
    stable_diffusion().delete_adapters("default")
    return sum(p.numel() for p in updates.values())


def storage(rank: int, targets: str) -> dict[str, float]:
    """Trained parameters, their share of the whole, and file size in MB (10^6 bytes, float32)."""
    count, total = rank * numbers_of_rank_1(targets), sum(p.numel() for p in stable_diffusion().parameters())
    return {"parameters": count, "share_percent": 100 * count / total, "megabytes": 4 * count / 1e6, "total": total}


def table() -> str:
    """Of every rank and target, and the whole UNet under them."""
    lines = [["targets", "rank", "parameters", "share", "file, float32"]]
    for targets, rank in itertools.product(TARGETS, (1, 4, 16, 50)):
        found = storage(rank, targets)
        lines.append([targets, str(rank), f"{found['parameters']:,}", f"{found['share_percent']:.4f} %",
                      f"{found['megabytes']:.2f} MB"])  # fmt: skip
    rank16 = storage(16, "attention")
    whole = 4 * rank16["total"] / 1e6
    return (f"{text_table(lines)}\n\nwhole UNet, float32: {whole:,.0f} MB, {whole / rank16['megabytes']:.0f} times the "
            "file of rank 16 on attention")  # fmt: skip
