"""Which token corresponds to which, against the published example and a naive alignment."""

import itertools
import random

import pytest
import torch
from transformers import CLIPTokenizer

from spdinv.engines import alignment
from spdinv.engines.alignment import find_word, refine_mapper, replace_matrix
from tests.refusing import refuses
from tests.tiny import WORDS, tiny_tokenizer, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), [*WORDS, "silver", "sculpture"])
    return CLIPTokenizer.from_pretrained(folder)


def test_refine_on_the_published_example(tokenizer):
    mapper, aligned = refine_mapper(tokenizer, "a cat on grass", "a silver cat sculpture on grass")
    assert mapper[:8].tolist() == [0, 1, -1, 2, -1, 3, 4, 5]  # start, a, -, cat, -, on, grass, end
    assert aligned[:8].tolist() == [1, 1, 0, 1, 0, 1, 1, 1]
    assert mapper[8:].tolist() == list(range(8, 77)) and aligned[8:].all()


def naive_global_alignment(x, y):
    """Needleman-Wunsch with a table of directions: gap 0, match 1, mismatch -1; left before up before diagonal."""
    score = dict.fromkeys([(i, 0) for i in range(len(x) + 1)] + [(0, j) for j in range(len(y) + 1)], 0)
    direction, steps = {}, {"left": (0, 1), "up": (1, 0), "diagonal": (1, 1)}
    for i, j in itertools.product(range(1, len(x) + 1), range(1, len(y) + 1)):
        options = {name: score[i - up, j - left] for name, (up, left) in steps.items()}
        options["diagonal"] += 1 if x[i - 1] == y[j - 1] else -1
        score[i, j] = max(options.values())
        direction[i, j] = next(name for name, value in options.items() if value == score[i, j])
    mapper, i, j = [-1] * len(y), len(x), len(y)
    while i and j:
        if direction[i, j] == "diagonal":
            mapper[j - 1] = i - 1
        up, left = steps[direction[i, j]]
        i, j = i - up, j - left
    return mapper


def test_refine_agrees_with_a_naive_alignment(tokenizer):
    chance = random.Random(0)
    for _ in range(60):
        source, target = (" ".join(chance.choices(WORDS[:6] + ["zebra"], k=chance.randint(0, 8))) for _ in range(2))
        x, y = alignment.token_ids(tokenizer, source), alignment.token_ids(tokenizer, target)
        mapper, aligned = refine_mapper(tokenizer, source, target)
        expected = naive_global_alignment(x, y)
        assert mapper[: len(y)].tolist() == expected
        assert aligned[: len(y)].tolist() == [float(i >= 0) for i in expected]


def test_equal_prompts_align_with_themselves(tokenizer):
    mapper, aligned = refine_mapper(tokenizer, "a red cat", "a red cat")
    assert torch.equal(mapper, torch.arange(77)) and aligned.all()
    assert torch.equal(replace_matrix(tokenizer, "a red cat", "a red cat"), torch.eye(77))
    matrix = replace_matrix(tokenizer, "a red cat on grass", "a blue dog on grass")
    assert torch.equal(matrix, torch.eye(77))  # position by position: the new word takes the old word's map
    refuses("4 and 6", replace_matrix, tokenizer, "a cat on grass", "a silver cat sculpture on grass")


def test_replace_spreads_a_word_over_more_tokens(tokenizer):
    source, target = "a cat on grass", "a xyz on grass"
    assert find_word(tokenizer, target, "xyz") == [2, 3, 4]
    matrix = replace_matrix(tokenizer, source, target)
    expected = torch.zeros(77, 77)
    expected[0, 0] = expected[1, 1] = 1
    expected[2, 2:5] = 1 / 3
    for token in range(5, 77):
        expected[token, token] = 1  # as released: after the last changed word, by position
    assert torch.equal(matrix, expected)


def test_replace_gathers_a_word_of_more_tokens_and_keeps_count_up_to_the_last_change(tokenizer):
    matrix = replace_matrix(tokenizer, "a xyz on grass", "a cat on snow")
    assert matrix[:, 2].nonzero().flatten().tolist() == [2, 3, 4] and matrix[2:5, 2].tolist() == [1, 1, 1]
    assert matrix[5, 3] == 1 and matrix[6, 4] == 1  # "on" and the changed last word, two tokens further on
    assert matrix[5, 5] == 1
    assert matrix[74, 74] == 1 and not matrix[:, 75:].any()  # as released: the walk ends with the longer prompt


def test_words_are_matched_whole_everywhere_and_up_to_the_limit(tokenizer):
    short = tiny_tokenizer(max_length=8)
    assert find_word(tokenizer, "a cat and a cat", "cat") == [2, 5]
    assert find_word(short, "a red cat on the grass", "grass") == [6]
    refuses("'grass' lies beyond the 6 tokens", find_word, short, "a big red cat on the grass", "grass")
    for prompt, word in [("a cat, a dog", "cat"), ("a cat", "dog"), ("a category", "cat")]:
        refuses(word, find_word, tokenizer, prompt, word)
    mapper, _ = refine_mapper(short, "a cat", "a big red cat on the grass in the snow")
    assert len(mapper) == 8


def test_equalizer_and_word_mask(tokenizer):
    weights = alignment.equalizer_weights(tokenizer, "a xyz cat", {"xyz": 2.0, "cat": 0.5})
    assert weights[:7].tolist() == [1, 1, 2, 2, 2, 0.5, 1] and weights[7:].eq(1).all()
    mask = alignment.word_mask(tokenizer, ["a cat", "a red dog"], ["cat", "dog"])
    assert mask.nonzero().tolist() == [[0, 2], [1, 3]]
    for function, prompt, words in ((alignment.equalizer_weights, "a cat", {"dog": 2.0}),
                                    (alignment.word_mask, ["a cat", "a red dog"], ["dog", "dog"])):  # fmt: skip
        refuses("", function, tokenizer, prompt, words)


def test_cross_replacement_lasts_so_many_steps_and_words_may_have_their_own(tokenizer):
    def schedule(steps):
        return alignment.cross_replace_schedule(tokenizer, "a red cat", 50, steps)

    for fraction, expected in ((0.4, 20), (0.8, 40), (0.0, 0), (1.0, 51)):
        assert schedule(fraction).shape == (51, 77)
        assert (schedule(fraction) == (torch.arange(51) < expected).float()[:, None]).all()
    assert schedule({"default_": 0.4, "cat": 0.8, "red": 0.0}).sum(0)[:5].tolist() == [20, 20, 0, 40, 20]
    assert schedule({"cat": 0.4}).sum(0)[:4].tolist() == [51, 51, 51, 20]
    refuses("", schedule, {"dog": 0.4})
