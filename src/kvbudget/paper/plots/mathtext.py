"""Titles as matplotlib prints them: text, and formulas in its part of TeX."""

import re
import textwrap

from kvbudget.study import titles

#: What matplotlib has for the commands of text; it has no small capitals, so they are upright.
_FONTS = {"textbf": "mathbf", "textit": "mathit", "emph": "mathit", "textsf": "mathsf"}
_FONTS |= {"texttt": "mathtt"}
#: Its names for commands. It does not see where \# ends.
_NAMES = {r"\le": r"\leq", r"\ge": r"\geq", r"\#": r"{\#}"}
#: Characters for private use that hold a formula's place while lines are broken.
_FORMULA, _REST = "\ue000", "\ue001"


def typeset(title: str, width: int) -> str:
    """A title in lines of about `width` characters; no formula is broken."""
    text, formulas = "", []
    for piece in titles.pieces(title):
        if isinstance(piece, titles.Formula):
            formulas.append(_formula(piece.tex))
            shown = len(re.sub(r"\\[A-Za-z]+|[{}^_ ]", "", piece.tex))
            text += _FORMULA + _REST * min(shown - 1, width - 1)
        else:
            text += piece
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return "\n".join(_line(line, formulas) for line in lines)


def _line(line: str, formulas: list[str]) -> str:
    """A line with its formulas put in."""
    # A line's first underscore would keep it out of legends, and dollars would begin a formula.
    text = re.sub("^_", r"$\\_$", line.replace("$", r"\$"))
    text = re.sub(f"{_FORMULA}{_REST}*", lambda _: formulas.pop(0), text)
    return text.replace(_REST, "")


def _formula(tex: str) -> str:
    return f"${''.join(_part(command, part) for command, part in titles.words(tex))}$"


def _part(command: str | None, tex: str) -> str:
    if command is None:
        return _renamed(tex)
    escaped = re.sub(r"([ %#_])", r"\\\1", tex)
    return rf"\{_FONTS.get(command, 'mathrm')}{{{_renamed(escaped)}}}"


def _renamed(tex: str) -> str:
    return re.sub(r"\\([A-Za-z]+|.)", lambda found: _NAMES.get(found[0], found[0]), tex)
