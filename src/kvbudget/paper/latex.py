"""Text, titles and numbers as LaTeX."""

import math
import re
from collections.abc import Iterable

from kvbudget.paper import budgets
from kvbudget.study import titles, typeface
from kvbudget.study.plan import Study

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    **{character: rf"\({tex}\)" for character, tex in typeface.SYMBOLS.items()},
}
#: A word of so many characters may be broken anywhere.
_LONG_WORD = 24
DASH = "--"
MEBIBYTE = 2**20


class Latex(str):
    """Text that is LaTeX already and must not be escaped again."""

    __slots__ = ()


def escape(text: object) -> Latex:
    """Any text as LaTeX that prints it, whatever it holds.

    Control characters and line breaks become spaces; characters that the paper's fonts lack become
    `?`, since one odd name of a processor must not stop the paper (titles of a study are refused
    when it is planned). Hyphens and commas lose their ligatures.
    """
    if isinstance(text, Latex):
        return text
    out = "".join(map(_character, re.sub(r"\s+", " ", str(text))))
    return Latex(re.sub(r"([-,])(?=\1)", r"\1{}", out))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if not character.isprintable():
        return " "
    return character if character < "\x7f" or character in typeface.LETTERS else "?"


def title(study: Study, section: str, key: str) -> Latex:
    """Name in print of a model, task or method."""
    return typeset(study.title(section, key))


def typeset(title: str) -> Latex:
    """A title as LaTeX: text and formulas; what is as long as a column can be broken."""
    out = []
    for piece in titles.pieces(title):
        if isinstance(piece, titles.Formula):
            parts = (_words(command, tex) for command, tex in titles.words(piece.tex))
            out.append(rf"\({''.join(parts)}\)")
        else:
            out.append(_breakable(piece))
    return Latex("".join(out))


def _words(command: str | None, tex: str) -> str:
    if command:
        return rf"\{command}{{{escape(tex)}}}"
    return "".join(
        f"{typeface.SYMBOLS[c]} " if c in typeface.SYMBOLS else c  # as `\alpha x` is no `\alphax`
        for c in tex
    )


def _breakable(text: str) -> str:
    """Text of which long words may be broken between any two characters."""
    words = text.split(" ")
    return " ".join(
        r"\allowbreak{}".join(escape(c) for c in word) if len(word) >= _LONG_WORD else escape(word)
        for word in words
    )


def key(*parts: object) -> str:
    r"""A key of `\res`: parts joined by slashes, characters special to TeX replaced by `-`."""
    return "/".join(re.sub(r"[^A-Za-z0-9._+-]", "-", str(part)) for part in parts)


def decimal(value: float, digits: int = 2) -> Latex:
    """A number with fixed digits and a real minus sign; a dash for NaN; no negative zero."""
    if value is None or math.isnan(value):
        return Latex(DASH)
    text = f"{abs(value):,.{digits}f}"
    negative = value < 0 and float(text.replace(",", "")) != 0
    return Latex(rf"\ensuremath{{-}}{text}" if negative else text)


def signed(value: float, digits: int = 2) -> Latex:
    """A difference, always with its sign."""
    text = decimal(value, digits)
    plain = not text.startswith(r"\ensuremath") and text != DASH and float(text.replace(",", ""))
    return Latex(rf"\ensuremath{{+}}{text}") if plain else text


def metric(name: str, value: float) -> Latex:
    """A metric in the paper's units: bytes as MiB, the rest as it is."""
    if name.endswith("_bytes") or "_bytes_" in name:
        return decimal(value / MEBIBYTE, 1 if value >= 10 * MEBIBYTE else 2)
    return decimal(value, {"prompt_tokens": 0, "decode_ms_per_token": 1}.get(name, 2))


def budget(token: str, all_kept: bool = False) -> Latex:
    """A budget token in print: `20%`, `256`, `full`; `all kept` where nothing is evicted."""
    return escape(budgets.text(token, all_kept))


def listing(items: Iterable[str]) -> Latex:
    """`a`, `a and b`, `a, b and c`; items are escaped."""
    items = [escape(item) for item in items]
    if len(items) < 2:
        return Latex("".join(items))
    return Latex(", ".join(items[:-1]) + " and " + items[-1])
