"""Passages of a haystack: where a context begins, how many fit, and text of an exact length."""

import random
import re
from collections.abc import Callable, Sequence

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.prompts import Tokenizer

#: Letters on each side of the best cut within a word among which there may be a better one.
_AROUND = 8


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


def fit(count: Callable[[str], int], text: str, target: int, slack: int) -> str:
    """The beginning of a text for which `count` is nearest to `target`.

    Ends after a whole word if that comes within `slack` tokens of the target, else within a word.
    `count` must not fall as the text grows.

    Raises:
        UserError: the text is too short.
    """
    size = target  # letters that are looked at: a token has one or more
    while count(text[:size]) < target:
        if size >= len(text):
            raise UserError(f"the haystack is too short for a prompt of {target} tokens")
        size *= 2
    text = text[: 2 * size]  # so that no word near the target is cut
    ends = [0, *(blank.start() for blank in re.finditer(" ", text)), len(text)]
    near = closest(lambda number: count(text[: ends[number]]), target, len(ends) - 1)
    best = text[: ends[near]]
    if abs(count(best) - target) <= slack:
        return best
    first, last = ends[max(0, near - 1)], ends[min(near + 1, len(ends) - 1)]
    cut = first + closest(lambda letters: count(text[: first + letters]), target, last - first)
    # Within a word, a letter more may be a token less.
    around = range(max(first, cut - _AROUND), min(last, cut + _AROUND) + 1)
    return min((text[:each] for each in around), key=lambda each: abs(count(each) - target))


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
