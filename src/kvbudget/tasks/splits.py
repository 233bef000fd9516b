"""Splits: what calibration, development and test draw from, so that no two share anything."""

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from kvbudget.errors import UserError

#: Share of the haystack's passages that each split draws from, in order, as (start, end).
SPLITS = {"calibration": (0.0, 0.2), "development": (0.2, 0.4), "test": (0.4, 1.0)}


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
