"""Passages of a haystack: where a context begins, how many fit, and text of an exact length."""

import random
from collections.abc import Callable, Sequence

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.prompts import Tokenizer


def pairs(passages: Sequence[str]) -> list[tuple[str, str]]:
    """The passages of a parallel text, each with its translation."""
    split = [tuple(passage.split("\t")) for passage in passages]
    if any(len(pair) != 2 for pair in split):
        raise UserError("the haystack is not a parallel text; give its entry a translation")
    return split


def start_passage(passages: Sequence[str], index: int, contexts: int, rng: random.Random) -> int:
    """Where context `index` of `contexts` begins.

    Each context has a stretch of its own to begin in, so that they overlap as little as the
    amount of text allows.
    """
    stretch = len(passages) / contexts
    return int((index + rng.random()) * stretch) if stretch >= 1 else rng.randrange(len(passages))


def passages_from(passages: Sequence[str], start: int) -> Sequence[str]:
    """All passages of a split, beginning with number `start` and going round at the end."""
    return [*passages[start:], *passages[:start]]


def passages_within(tokenizer: Tokenizer, passages: Sequence[str], tokens: int) -> int:
    """How many of the passages, from the first on, fit into `tokens` tokens when joined by spaces.

    An estimate, for tokenizers that merge across the joints.
    """
    total = 0
    for number, passage in enumerate(passages):
        total += len(prompts.encode(tokenizer, f" {passage}"))
        if total > tokens:
            return number
    return len(passages)


def fit(count: Callable[[str], int], words: Sequence[str], target: int, slack: int) -> str:
    """The beginning of `words`, joined by spaces, for which `count` is nearest to `target`.

    Ends after a whole word if that comes within `slack` tokens of the target, else within a word.
    `count` must not fall as the text grows.

    Raises:
        UserError: the words are too few.
    """
    if not words or count(" ".join(words)) < target:
        raise UserError(f"the haystack is too short for a prompt of {target} tokens")
    near = closest(lambda number: count(" ".join(words[:number])), target, len(words))
    best = " ".join(words[:near])
    if abs(count(best) - target) <= slack:
        return best
    around = " ".join(words[: near + 1])
    cuts = range(len(" ".join(words[: max(0, near - 1)])), len(around) + 1)
    return min((around[:cut] for cut in cuts), key=lambda text: abs(count(text) - target))


def closest(count: Callable[[int], int], target: int, end: int) -> int:
    """The n in [0, end] for which `count(n)`, which does not fall, is nearest to `target`."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        if count(middle) >= target:
            high = middle
        else:
            low = middle + 1
    return min((max(0, low - 1), low), key=lambda number: abs(count(number) - target))
