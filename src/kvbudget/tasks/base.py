"""What all tasks share: samples, random draws, splits of the text, prompts of an exact length."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from kvbudget import prompts
from kvbudget.errors import UserError

#: Share of the haystack's passages that each split draws from, in order, as (start, end).
SPLITS = {"calibration": (0.0, 0.2), "development": (0.2, 0.4), "test": (0.4, 1.0)}
#: Largest relative difference between a prompt's length and the length asked for.
TOLERANCE = 0.01
#: Keys of a task's config entry that say what it is called, not how it is made.
_NAMES = {"name", "kind", "title"}


@dataclass(frozen=True)
class Question:
    """What follows a context: `ids` are the question, the end of the chat turn and the prefix of
    the answer; the model continues from there.

    `answer_ids` is the reference answer as tokens, for its negative log-likelihood.
    """

    id: str
    ids: list[int]
    references: list[str]
    answer_ids: list[int]
    max_new_tokens: int


@dataclass(frozen=True)
class Context:
    """A prompt up to, and without, the question: it is compressed before any question is read."""

    id: str
    ids: list[int]
    questions: list[Question]


def question(
    identity: str, ids: list[int], references: list[str], answer_ids: list[int], new_tokens: int
) -> Question:
    """A question with room for `new_tokens` of output, or for the whole answer if that is more."""
    return Question(identity, ids, references, answer_ids, max(new_tokens, len(answer_ids)))


def options_of(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` overlaid with a task's options.

    Raises:
        UserError: an option that the task does not know, or of another type than its default.
    """
    given = {key: value for key, value in options.items() if key not in _NAMES}
    where = f"task {options.get('name', options.get('kind', ''))}".strip()
    for key, value in given.items():
        if key not in defaults:
            raise UserError(f"{where}: unknown option {key!r}; it knows {', '.join(defaults)}")
        fits = type(value) is type(defaults[key])
        if defaults[key] == "auto":  # or a number in place of the one that is found
            fits = value == "auto" or type(value) is int
        if not fits:
            kind = type(defaults[key]).__name__
            raise UserError(f"{where}: option {key} must be of type {kind}, not {value!r}")
    return {**defaults, **given}


def check_split(split: str) -> None:
    """Raise UserError unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")


def draws(*parts: Any) -> random.Random:
    """A generator that depends on all of `parts` and on nothing else (not on Python's hash)."""
    text = "\x1f".join(map(str, parts))
    return random.Random(hashlib.sha256(text.encode()).digest())


def own(split: str, items: Sequence[Any]) -> Sequence[Any]:
    """Those of `items` (any slice-able sequence) that belong to a split, dealt out in turn."""
    check_split(split)
    return items[list(SPLITS).index(split) :: len(SPLITS)]


def spell(number: int, alphabet: str, letters: int) -> str:
    """A number below `len(alphabet) ** letters` as a word: no two numbers give the same."""
    word = ""
    for _ in range(letters):
        number, rest = divmod(number, len(alphabet))
        word += alphabet[rest]
    return word


def split_passages(passages: Sequence[str], split: str) -> Sequence[str]:
    """The passages that belong to a split: no two splits share one."""
    check_split(split)
    start, end = (int(share * len(passages)) for share in SPLITS[split])
    return passages[start:end]


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


def passages_within(
    tokenizer: PreTrainedTokenizerBase, passages: Sequence[str], tokens: int
) -> int:
    """How many of the passages, from the first on, fit into `tokens` tokens when joined by spaces.

    An estimate, for tokenizers that merge across the joints.
    """
    total = 0
    for number, passage in enumerate(passages):
        total += len(prompts.encode(tokenizer, f" {passage}"))
        if total > tokens:
            return number
    return len(passages)


def string_match_all(output: str, references: Sequence[str]) -> float:
    """Share of `references` found in `output`, case ignored: RULER's score of all tasks here."""
    found = sum(reference.lower() in output.lower() for reference in references)
    return found / len(references)


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
