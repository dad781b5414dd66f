"""The picturebook's CLIPTokenizer: whole words for what captions say, characters for everything else."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer

from common.picturebook.scenes import BACKGROUND_WORDS, COLORS, KINDS, MATERIALS, POSES

MAX_LENGTH = 77  # as in Stable Diffusion
START, END = "<|startoftext|>", "<|endoftext|>"
OTHER_WORDS = (
    "a an and the of in on by with at to is hat left right facing thing night day pencil sketch picture photo painting "
    "drawing plain standing small big two three toy next wearing animal vehicle scene style"
)


def byte_symbols() -> list[str]:
    """The 256 printable characters that byte-level BPE writes bytes as, in byte order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = iter(range(256, 512))
    return [chr(byte if byte in printable else next(rest)) for byte in range(256)]


def merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: joins the pair of lowest rank until no pair is known."""
    while True:
        pairs = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in ranks]
        if not pairs:
            return pieces
        best, joined = min(pairs, key=ranks.get), []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined


def words() -> list[str]:
    known = [*COLORS, *KINDS, *MATERIALS, *POSES, *" ".join(BACKGROUND_WORDS.values()).split(), *OTHER_WORDS.split()]
    return list(dict.fromkeys(known))


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json, merges.txt and the tokenizer's configuration to `folder`; returns the tokenizer.

    Each word's merges are appended after simulating those already there, and therefore never break an earlier word.
    All 256 byte symbols, bare and word-final, are in the vocabulary, so that no text falls out of it.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words():
        pieces = merge([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[(pieces[0], pieces[1])] = len(ranks)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in ranks), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in ranks))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "pad_token": END,
        "bos_token": START,
    }
    settings |= {"eos_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)
