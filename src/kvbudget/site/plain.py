"""Titles as plain text, for a page that sets no formulas: Greek letters and signs as they are."""

import re

from kvbudget.study import titles
from kvbudget.study.typeface import ARGUMENTS, SYMBOLS

#: Signs by their commands; of several letters for one command, the first, which is the usual one.
_SIGNS = {command: sign for sign, command in reversed(SYMBOLS.items()) if command[1:].isalpha()}
_SIGNS |= {r"\quad": " ", r"\qquad": " ", r"\cdot": "·", r"\le": "≤", r"\ge": "≥", r"\to": "→"}


def typeset(title: str) -> str:
    r"""A title in plain text: `$\textsc{Ours}_{\lambda}$` is `Ours_λ`."""
    return "".join(
        piece if isinstance(piece, str) else _formula(piece.tex) for piece in titles.pieces(title)
    )


def _formula(tex: str) -> str:
    return "".join(part if command else _signs(part) for command, part in titles.words(tex))


def _signs(tex: str) -> str:
    """Mathematics in one line: a command that is no sign is its own name, or nothing if it only
    changes the looks of its argument."""
    named = re.sub(r"\\([A-Za-z]+)", _named, tex)
    return re.sub(r"\\(.)", r"\1", named).replace("{", "").replace("}", "")


def _named(found: re.Match) -> str:
    return _SIGNS.get(found[0], "" if found[1] in ARGUMENTS else found[1])
