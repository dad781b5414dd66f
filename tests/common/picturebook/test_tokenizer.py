"""The vocabulary: captions are whole words, everything else survives as characters."""

import random

import pytest

from common.picturebook.scenes import caption, sample_scene
from common.picturebook.tokenizer import MAX_LENGTH, build_tokenizer, words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_known_words_are_one_token_each_also_in_captions(tokenizer):
    assert [word for word in words() if len(tokenizer.tokenize(word)) != 1] == []
    for seed in range(200):
        text = caption(sample_scene(seed), random.Random(seed))
        assert tokenizer.tokenize(text) == [word + "</w>" for word in text.replace(",", " ,").split()]
        assert len(tokenizer(text).input_ids) <= MAX_LENGTH


@pytest.mark.parametrize("text", ["sks", "a cat, two dogs!", "café", "猫", "x" * 40, "Zürich 2026"])
def test_any_text_survives_without_an_end_in_the_middle(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_padding_is_the_end_token_up_to_77(tokenizer):
    ids = tokenizer("a cat", padding="max_length").input_ids
    assert len(ids) == 77 and set(ids[4:]) == {tokenizer.eos_token_id} and ids[0] == tokenizer.bos_token_id
