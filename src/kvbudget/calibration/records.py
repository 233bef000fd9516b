"""Contexts that are repeated to fit the scorer: running text, half of it strewn with records.

Records are short statements of made-up facts, in several forms. They are what a repetition has to
look up token by token, as it must numbers and names of any text, and have nothing of a task's form:
no needle, key or question of a test.
"""

import random
import string
from collections.abc import Iterator, Sequence

from kvbudget import prompts
from kvbudget.prompts import Tokenizer
from kvbudget.tasks.passages import passages_from
from kvbudget.tasks.splits import draws, split_passages

_THINGS = ("gate", "shelf", "crew", "route", "permit", "sample", "locker", "meter", "draft")
_FIELDS = ("batch", "code", "owner", "count", "colour", "date", "price", "weight", "status")
_NAMES = ("Marta", "Olin", "Quist", "Perrin", "Ames", "Voss", "grey", "teal", "tin", "closed")
_FORMS = (
    "The {field} of {thing} {letter} is {value}.",
    "{thing} {letter}: {field} = {value}.",
    "Note: for {thing} {letter}, the {field} was set to {value}.",
    "{field} ({thing} {letter}): {value};",
)
#: Records a passage, on average, of the texts that are strewn with them.
_DENSITIES = (0.0, 0.2, 0.0, 1.0)


def record(rng: random.Random) -> str:
    """One made-up fact."""
    code = "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.choice((4, 5, 6))))
    number, name = str(rng.randrange(10, 99999)), " ".join(rng.sample(_NAMES, 2))
    return rng.choice(_FORMS).format(
        thing=rng.choice(_THINGS),
        letter=rng.choice(string.ascii_uppercase),
        field=rng.choice(_FIELDS),
        value=rng.choice((code, code, number, name)),
    )


def contexts(
    tokenizer: Tokenizer,
    passages: Sequence[str],
    lengths: Sequence[int],
    indices: Sequence[int],
    seed: int,
) -> Iterator[list[int]]:
    """Contexts of each length, as token ids: the opening of a prompt, then text.

    Args:
        tokenizer: of the model that reads them.
        passages: the haystack, of which the calibration split is used.
        lengths: tokens of a context.
        indices: which contexts of each length; equal ones are the same context.
        seed: of all random draws.
    """
    head, _ = prompts.prompt_frame(tokenizer)
    text = split_passages(passages, "calibration")
    for length in lengths:
        for index in indices:
            rng = draws("repeated", length, index, seed)
            density = _DENSITIES[index % len(_DENSITIES)]
            parts: list[str] = []
            for passage in passages_from(text, rng.randrange(len(text))):
                parts.append(passage)
                while rng.random() * (1 + density) < density:
                    parts.append(record(rng))
                if sum(map(len, parts)) > 8 * length:  # a token has fewer letters on average
                    break
            ids = prompts.encode(tokenizer, " ".join(parts))
            yield (head + ids)[:length]
