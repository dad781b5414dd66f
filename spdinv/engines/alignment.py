"""From words to tokens: which token of the source prompt each token of the target prompt corresponds to, and when.

Prompt-to-Prompt (arXiv 2208.01626), Sec. 3.2, as its released code does it. L is the tokenizer's maximal length, 77
for CLIP; token 0 is the start token. Prompts are cut to L as common.pipelines.encode_prompt cuts them.
"""

import torch
from transformers import PreTrainedTokenizerBase

from common.runs import InputError


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """From the start token to the end token, no padding, at most L."""
    return tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids


def word_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[list[int]]:
    """Per space-separated word of `prompt`, the positions of its tokens (the start token being position 0)."""
    words, position = [], 1
    for word in prompt.split(" "):
        pieces = len(tokenizer(word, add_special_tokens=False).input_ids)
        words.append([p for p in range(position, position + pieces) if p < tokenizer.model_max_length - 1])
        position += pieces
    return words


def find_word(tokenizer: PreTrainedTokenizerBase, prompt: str, word: str) -> list[int]:
    """Positions of the tokens of every occurrence of `word` in `prompt`. A word is matched whole and exactly, as
    released ("cat" is not "cat,"). Raises InputError if there is none: the released code would go on with an empty mask
    and quietly edit nothing."""
    words = zip(prompt.split(" "), word_tokens(tokenizer, prompt), strict=True)
    positions = [p for candidate, tokens in words if candidate == word for p in tokens]
    known = list(dict.fromkeys(prompt.split(" ")))
    if word not in known:
        raise InputError(f"the word {word!r} is not in the prompt {prompt!r}; take one of {known}.")
    if not positions:
        room = tokenizer.model_max_length - 2  # start and end tokens
        raise InputError(f"the word {word!r} lies beyond the {room} tokens that are read of the prompt: shorten it")
    return positions


def refine_mapper(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Align the two prompts' tokens for AttentionRefine.

    Returns mapper int64 [L] and aligned float32 [L]: target token j takes the map of source token mapper[j] where
    aligned[j] is 1, and keeps its own (mapper[j] = -1) where it is 0. Padding maps to itself.
    The alignment is the global one with match 1, mismatch -1, gap 0, so a longest common subsequence; where several
    are as long, walking back from the end prefers to skip a target token, then a source token, then to match.
    """
    x, y = token_ids(tokenizer, source), token_ids(tokenizer, target)
    best = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]  # best[i][j]: matches among x[:i], y[:j]
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            match = best[i - 1][j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], match)

    mapper = torch.arange(tokenizer.model_max_length)
    mapper[: len(y)] = -1
    i, j = len(x), len(y)
    while i > 0 and j > 0:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            mapper[j] = i
    return mapper, (mapper >= 0).float()


def replace_matrix(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> torch.Tensor:
    """The matrix M [L, L] of AttentionReplace: the target's map of token n is sum_w M[w, n] * source's map of token w.

    Word i of the target stands for word i of the source. A changed word of equally many tokens goes token by token;
    otherwise each of its target tokens gets the sum of all its source tokens / number of its target tokens. As
    released, tokens after the last changed word map to themselves, even where unequal token counts have shifted them;
    and where the source has d tokens more up to there, the last d tokens of the padding get no map at all.
    Raises InputError if the prompts differ in their number of words.
    """
    source_words, target_words = source.split(" "), target.split(" ")
    if len(source_words) != len(target_words):
        raise InputError("the replace controller needs prompts of equally many words, but these have "
                         f"{len(source_words)} and {len(target_words)}; use the refine controller.")  # fmt: skip
    words = zip(source_words, target_words, word_tokens(tokenizer, source), word_tokens(tokenizer, target), strict=True)
    changed = [(xs, ys) for x, y, xs, ys in words if x != y and xs and ys]
    length = tokenizer.model_max_length
    matrix = torch.zeros(length, length)
    i = j = 0  # the first source and target token not yet mapped
    for xs, ys in changed:
        for offset in range(xs[0] - i):
            matrix[i + offset, j + offset] = 1
        if len(xs) == len(ys):
            matrix[xs, ys] = 1
        else:
            matrix[xs[0] : xs[-1] + 1, ys] = 1 / len(ys)
        i, j = xs[-1] + 1, ys[-1] + 1
    for token in range(j, length - max(i - j, 0)):
        matrix[token, token] = 1
    return matrix


def equalizer_weights(tokenizer: PreTrainedTokenizerBase, target: str, equalizer: dict[str, float]) -> torch.Tensor:
    """AttentionReweight's factors [L]: those of `equalizer` on the tokens of its words in the target prompt, else 1.
    InputError for a word that the target prompt lacks."""
    weights = torch.ones(tokenizer.model_max_length)
    for word, factor in equalizer.items():
        weights[find_word(tokenizer, target, word)] = factor
    return weights


def word_mask(tokenizer: PreTrainedTokenizerBase, prompts: list[str], words: list[str | None]) -> torch.Tensor:
    """[2, L]: 1 on the tokens of word i in prompt i (source, target), none for None. InputError for a missing word."""
    mask = torch.zeros(len(prompts), tokenizer.model_max_length)
    for row, prompt, word in zip(mask, prompts, words, strict=True):
        if word is not None:
            row[find_word(tokenizer, prompt, word)] = 1
    return mask


def cross_replace_schedule(
    tokenizer: PreTrainedTokenizerBase, target: str, steps: int, cross_replace_steps: float | dict[str, float]
) -> torch.Tensor:
    """Which target tokens take edited cross-attention maps, and when: [steps + 1, L] of 0 and 1.

    A fraction c means the first int(c * (steps + 1)) steps: 20 of 50 at 0.4, 40 at 0.8. A dict gives words of the
    target prompt fractions of their own; "default_" is that of all others, 1 if left out.
    Raises InputError for a word that the target prompt lacks.
    """
    fractions = cross_replace_steps if isinstance(cross_replace_steps, dict) else {"default_": cross_replace_steps}
    schedule = torch.zeros(steps + 1, tokenizer.model_max_length)
    schedule[: int(fractions.get("default_", 1.0) * (steps + 1))] = 1
    for word, fraction in fractions.items():
        if word != "default_":
            tokens = torch.tensor(find_word(tokenizer, target, word))
            schedule[:, tokens] = (torch.arange(steps + 1) < int(fraction * (steps + 1))).float()[:, None]
    return schedule
