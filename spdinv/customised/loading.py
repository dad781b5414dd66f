"""A personalised model: the base model changed by what a LoRA, Custom Diffusion or Textual Inversion file holds.

Everything ends up in the model's own weights: LoRA's products are added to them, Custom Diffusion's projections take
the place of the base's, learned words join the token table. So inversions, engines and their hooks (engines/attention)
work on the customised model without knowing, and pay nothing for it. (A full fine-tune is a model of its own.)
"""

import os
import re
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from common.files import InputError, refused_as
from common.lora import put_on
from common.model_files import check_weights, move_weights
from spdinv.customised.words import add_word

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # a file is taken in the first of these that is there
# What a training leaves in its folder, beside optimiser states, checkpoints and earlier steps.
EMPTY = torch.zeros(0, 1)
NAMES = ("pytorch_lora_weights", "pytorch_custom_diffusion_weights", "delta*", "learned_embeds", "<*>")


def load_adapter(pipe: DiffusionPipeline, path: str | Path) -> str:
    """Change `pipe` by a file, or by the files in the folder of a training, and say what was found.

    LoRA: all that diffusers loads (its own keys of all times, peft's, kohya's), at scale 1, on UNet and text encoder.
    Custom Diffusion: pytorch_custom_diffusion_weights with the words <new1>.bin ... beside it, and the deltas of the
    original code, of its diffusers (delta.bin) or its CompVis branch (delta.ckpt; SD 1.x).
    Textual Inversion: of diffusers ({word: vectors}) and of A1111's webui (.pt, .safetensors), any number of vectors.
    Raises InputError for files that are none of these, are damaged, hold code, or were made for another model.
    """
    return ", ".join(apply(pipe, file, read(file)) for file in find_files(Path(os.path.expanduser(path))))


def find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder; give an adapter's weights")
    if (path / "model_index.json").is_file():
        raise InputError(f"{path} is a whole model and no adapter; give it to --pretrained_model_name_or_path")
    known = [file for name in NAMES for suffix in SUFFIXES for file in sorted(path.glob(name + suffix))]
    found = {file.stem: file for file in reversed(known)}  # of two formats the first in SUFFIXES
    others = [file for file in path.iterdir() if file.suffix in SUFFIXES and file.name[0] != "."]
    if not found and len(others) != 1:
        raise InputError(f"{path} holds no adapter under a known name ({', '.join(NAMES)}, each with "
                         f"{', '.join(SUFFIXES)}) and not just one file of weights either; name it")  # fmt: skip
    return [*reversed(found.values())] or others


def read(file: Path) -> dict:
    """Names to tensors (some formats nest them). Never runs code: pickles are read as plain tensors or refused."""
    with refused_as(f"{file} cannot be read as weights, it is damaged or is a pickle of more than tensors"):
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    return content if isinstance(content, dict) and all(isinstance(key, str) for key in content) else {}


def apply(pipe: DiffusionPipeline, file: Path, content: dict) -> str:
    """Change the pipeline by one file's content, told by its keys."""
    keys = list(content)
    if any("lora" in key for key in keys):
        check_weights(file, content)
        with put_on(pipe, file, content) as layers, refused_as(f"the LoRA {file} does not fit this model"):
            pipe.fuse_lora(safe_fusing=True)  # adds B A, times alpha / rank; refuses what is not finite
        return f"LoRA of {len(layers)} layers"
    if any("_custom_diffusion" in key for key in keys):
        named = {key.replace(".processor", "").replace("_custom_diffusion", ""): content[key] for key in keys}
        layers = {key: value for key, value in named.items()  # self-attention is listed with nothing in it
                  if (value.numel() if isinstance(value, torch.Tensor) else value != {})}  # fmt: skip
        return custom_diffusion(pipe, file, layers, {})
    if isinstance(content.get("unet"), dict):
        if extra := sorted(content.keys() - {"unet", "modifier_token"}):
            raise InputError(f"{file} also holds {extra[0]}, which no engine here would use; load it as a whole model")
        return custom_diffusion(pipe, file, content["unet"], content.get("modifier_token", {}))
    if isinstance(content.get("state_dict"), dict):
        layers = dict(content["state_dict"])
        check_weights(file, layers)
        words = {f"<new{i + 1}>": vector for i, vector in enumerate(torch.atleast_2d(layers.pop("embed", EMPTY)))}
        return custom_diffusion(pipe, file, {from_compvis(name): layers[name] for name in layers}, words)
    word, vectors = learned_word(file, content)
    check_weights(file, {word: vectors})
    add_word(pipe, word, vectors)
    return f"the word {word} of {len(torch.atleast_2d(vectors))} tokens"


def learned_word(file: Path, content: dict) -> tuple[str, torch.Tensor]:
    """The one word of a Textual Inversion file and its vectors."""
    word, vectors = next(iter(content.items()), (None, None)) if len(content) == 1 else (None, None)
    if isinstance(content.get("string_to_param"), dict):  # A1111
        word, vectors = content.get("name") or file.stem, content["string_to_param"].get("*")
    elif word == "emb_params":  # A1111 as safetensors: the word is the file's name
        word = file.stem
    if not isinstance(word, str) or not isinstance(vectors, torch.Tensor):
        raise InputError(f"{file} holds none of LoRA, Custom Diffusion and Textual Inversion; a fine-tuned model is "
                         "given as a folder to --pretrained_model_name_or_path")  # fmt: skip
    return word, vectors


def custom_diffusion(pipe: DiffusionPipeline, file: Path, layers: dict, words: dict) -> str:
    """Put in the attention projections that Custom Diffusion trained (whole matrices, not differences) and its words.
    diffusers' CustomDiffusionAttnProcessor does the same sums with them, but hides them from other processors."""
    check_weights(file, words)
    check_weights(file, layers)
    move_weights(pipe.unet, layers, file)
    for word, vectors in words.items():
        add_word(pipe, word, vectors)
    return " and ".join(["Custom Diffusion", *words])


def from_compvis(name: str) -> str:
    """diffusers' name of a cross-attention weight in CompVis' layout of SD 1.x, three parts to a level."""
    name = name.removeprefix("model.diffusion_model.").replace("middle_block.1.", "mid_block.attentions.0.")

    def renamed(side: str, place: int) -> str:
        return f"{side}_blocks.{place // 3}.attentions.{place % 3}."

    name = re.sub(r"^input_blocks\.(\d+)\.1\.", lambda found: renamed("down", int(found[1]) - 1), name)
    return re.sub(r"^output_blocks\.(\d+)\.1\.", lambda found: renamed("up", int(found[1])), name)
