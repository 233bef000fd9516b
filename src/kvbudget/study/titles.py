r"""Titles as people write them: plain text, or TeX between dollars, as `$\textsc{Ours}$, 4 bits`.

Plain text is printed as it is given: `H_2O`, `50% & more` and `\par` are no TeX. Between two
dollars stands a formula in the commands of `typeface`. As in Pandoc's Markdown a formula neither
begins nor ends with a space and no digit follows it, so `$5 or $10` has none; `\$` is a dollar.
What cannot be printed is refused when a study is planned, not after its cells have been measured.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from kvbudget.errors import UserError
from kvbudget.options import suggest
from kvbudget.study.typeface import ALONE, ARGUMENTS, CAPITALS, LETTERS, MARKS, SYMBOLS, WORDS

LONGEST = 120
_PLAIN = frozenset("+-*/=<>()[]|.,:;!? ")
_FORMULA = re.compile(r"(?<!\\)\$(?=\S)((?:\\.|[^$\\])+)(?<=\S)\$(?!\d)")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_WORDS = re.compile(rf"\\({'|'.join(WORDS)})\{{((?:\\[%#_]|[^{{}}\\$%#_&~^\"'`])+)\}}")


@dataclass(frozen=True)
class Formula:
    """What stands between two dollars, without them."""

    tex: str


def pieces(title: str) -> Iterator[str | Formula]:
    """The text and the formulas of a title, in order; line breaks are spaces."""
    title = unicodedata.normalize("NFC", re.sub(r"\s+", " ", title.strip()))
    start = 0
    for found in _FORMULA.finditer(title):
        if found.start() > start:
            yield title[start : found.start()].replace(r"\$", "$")
        yield Formula(found[1])
        start = found.end()
    if start < len(title):
        yield title[start:].replace(r"\$", "$")


def words(formula: str) -> Iterator[tuple[str | None, str]]:
    r"""A formula's parts: `(None, mathematics)`, and `("textsc", "Ours")` for `\textsc{Ours}`."""
    start = 0
    for found in _WORDS.finditer(formula):
        if found.start() > start:
            yield None, formula[start : found.start()]
        yield found[1], re.sub(r"\\(.)", r"\1", found[2])
        start = found.end()
    if start < len(formula):
        yield None, formula[start:]


def check(where: str, title: str) -> None:
    """Refuse a title that tables and figures cannot print.

    Args:
        where: what is named in the message, such as `methods: h2o: title`.
        title: as the configuration has it.

    Raises:
        UserError: names the character or command at fault, and what to write instead.
    """
    try:
        if not title.strip():
            raise UserError("it is blank; write something or leave it out")
        if len(title) > LONGEST:
            raise UserError(f"it has {len(title)} characters; use at most {LONGEST}")
        for piece in pieces(title):
            if isinstance(piece, str):
                _check_text(piece)
            else:
                _Reader(piece.tex).check()
    except UserError as error:
        raise UserError(f"{where}: {title[:LONGEST]!r} cannot be printed: {error}") from None


def _check_text(text: str) -> None:
    for character in text:
        if not (" " <= character <= "~" or character in LETTERS or character in SYMBOLS):
            raise UserError(
                f"the paper's fonts lack {_named(character)}; use Latin or Greek letters"
            )


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    return f"{character!r} ({code})" if character.isprintable() else code


class _Reader:
    """Reads a formula from left to right and raises at what is not of the known part of TeX."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.place = 0

    def check(self) -> None:
        self._row(closing=None)

    def _row(self, closing: str | None) -> None:
        """Atoms up to the closing brace, or to the end."""
        scripts: set[str] = set()
        base = False
        while (character := self._peek()) != closing:
            if character is None:
                raise UserError("a { is not closed; write a }")
            if character in "^_":
                if not base:
                    raise UserError(f"{character} has nothing before it; write {{}}{character}")
                if character in scripts:
                    raise UserError(f"{character} stands twice; put the first into {{ }}")
                scripts.add(character)
                self.place += 1
                self._atom(of=character)
            else:
                base = base if character == " " else True
                scripts = scripts if character == " " else set()
                self._atom()
        self.place += closing is not None

    def _atom(self, of: str | None = None) -> None:
        character = self._peek()
        if character is None or (of and character in " }^_"):
            raise UserError(f"{of} has nothing after it; write {of}{{...}}")
        if character == "\\":
            if of and not self._alone():
                raise UserError(f"put what {of} stands before into {{ }}")
            self._command()
        elif character == "{":
            self.place += 1
            self._row(closing="}")
        elif character == "}":
            raise UserError("a } closes nothing; write \\} to print it")
        elif SYMBOLS.get(character, "").startswith("^"):
            raise UserError(f"write ^ in place of {_named(character)} between dollars")
        elif character in _PLAIN or character in SYMBOLS or re.match("[A-Za-z0-9]", character):
            self.place += 1
        else:
            raise UserError(
                f"{_named(character)} cannot stand in mathematics; put it into \\text{{...}}, or "
                "write \\$ for a dollar that begins none"
            )

    def _alone(self) -> bool:
        return _COMMAND.match(self.formula, self.place)[1] in ALONE

    def _command(self) -> None:
        name = _COMMAND.match(self.formula, self.place)[1]
        if name in WORDS:
            found = _WORDS.match(self.formula, self.place)
            if found is None:
                raise UserError(f"\\{name} takes plain text in braces, with \\%, \\# and \\_")
            _check_text(re.sub(r"\\(.)", r"\1", found[2]))
            self.place = found.end()
            return
        if name not in ALONE | MARKS | ARGUMENTS.keys():
            known = [*ALONE, *ARGUMENTS, *WORDS]
            raise UserError(
                f"\\{name} is not known{suggest(name, known)}; known are "
                + " ".join(f"\\{command}" for command in sorted(known))
            )
        self.place += 1 + len(name)
        for _ in range(ARGUMENTS.get(name, 0)):
            if self._peek() != "{":
                raise UserError(f"\\{name} needs its argument in braces: \\{name}{{...}}")
            start = self.place
            self.place += 1
            self._row(closing="}")
            inside = self.formula[start + 1 : self.place - 1]
            if not inside.strip():
                raise UserError(f"the argument of \\{name} is empty")
            if name in CAPITALS and not re.fullmatch("[A-Z ]+", inside):
                raise UserError(f"\\{name} has capital letters only")

    def _peek(self) -> str | None:
        return self.formula[self.place] if self.place < len(self.formula) else None
