"""A new word for a text encoder: learned vectors in its token table, and a tokenizer that knows the word."""

import re

import torch
from diffusers import DiffusionPipeline
from tokenizers import AddedToken, Regex, normalizers

from common.runs import InputError

PRIVATE = 0xE000  # characters for private use, which no prompt holds: each learned vector is the token of one of them


@torch.no_grad()
def add_word(pipe: DiffusionPipeline, word: str, vectors: torch.Tensor) -> None:
    """From now on `word` in a prompt stands for `vectors` [n, D] (or [D]): n tokens, whatever it stood for before.

    The tokenizer itself puts the n tokens in the word's place, so the text encoder, the alignment of prompts and
    LocalBlend all see one word of n tokens; upper and lower case are one, as in all of CLIP's text.
    Raises InputError if the vectors do not fit the text encoder or hold NaN, and for SDXL with its two encoders.
    """
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise InputError(f"the word {word!r} cannot be added to SDXL, which has two text encoders; take SD 1.x or 2.x")
    vectors, table = torch.atleast_2d(vectors), pipe.text_encoder.get_input_embeddings().weight
    if not word.strip():
        raise InputError(f"a learned word is called {word!r}; give its file the name of a word")
    fits = vectors.ndim == 2 and len(vectors) > 0 and vectors.shape[1] == table.shape[1]
    if not fits or not vectors.float().isfinite().all():
        raise InputError(f"the word {word!r} has vectors of shape {list(vectors.shape)}, or NaN in them, where this "
                         f"model needs [n, {table.shape[1]}]: take a word learned on this kind of model")  # fmt: skip
    ids = _token_ids(pipe.tokenizer, word, len(vectors))
    if ids[-1] >= len(table):
        table = torch.cat([table[: ids[0]], vectors.to(table)])
        pipe.text_encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
        pipe.text_encoder.config.vocab_size = len(table)
    table[ids] = vectors.to(table)


def _token_ids(tokenizer, word: str, count: int) -> list[int]:
    """The ids of the word's `count` tokens, which are made unless the word has as many already."""
    words = tokenizer.__dict__.setdefault("learned_words", {})  # word -> its characters
    plain = tokenizer.__dict__.setdefault("plain_normalizer", tokenizer.backend_tokenizer.normalizer)
    word = plain.normalize_str(word) if plain else word.lower()  # as it will stand in a prompt: é may be two characters
    if len(words.get(word, "")) != count:
        first = PRIVATE + len(tokenizer.get_added_vocab())
        words[word] = "".join(chr(first + i) for i in range(count))
        tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in words[word]])
        longest_first = sorted(words, key=len, reverse=True)  # <cat> must not be found in <cat>-like
        replacements = [normalizers.Replace(Regex(_pattern(known)), words[known]) for known in longest_first]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([plain, *replacements])
    return tokenizer.convert_tokens_to_ids(list(words[word]))


def _pattern(word: str) -> str:
    """The word, and not as a part of a longer one: "sks" is not in "asks", but "*" may follow anything."""
    before, after = r"(?<!\w)" if word[0].isalnum() else "", r"(?!\w)" if word[-1].isalnum() else ""
    return before + re.escape(word) + after
