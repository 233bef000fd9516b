"""Refuse a paper whose prose or generated files do not follow from the CSV files.

Four things are checked: sections hold no bare number; every `\\res` key and citation exists; every
generated file was made from the CSV files that lie there now; and a paper of the development split
says so. A number that is no result (a constant of a method, a version) is allowed on a line that
says why: `% allow-number: the published setting`.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvbudget.analysis import schema
from kvbudget.errors import UserError

ALLOW = re.compile(r"%\s*allow-number:\s*\S")
COMMENT = re.compile(r"(?<!\\)%.*")
DISPLAY = re.compile(
    r"\\begin\{(equation|align|gather|multline)(\*?)\}.*?\\end\{\1\2\}|\\\[.*?\\\]", re.DOTALL
)
INLINE = re.compile(r"\\\((.*?)\\\)|(?<!\\)\$(.*?)(?<!\\)\$", re.DOTALL)
#: Commands whose arguments are names, not prose.
NAMES = re.compile(
    r"\\(?:res|cite\w*|[cC]?ref|eqref|label|input|includegraphics|autofigure|url|href|begin|end)"
    r"\*?(?:\[[^\]]*\])*\{[^{}]*\}"
)
NUMBER = re.compile(r"(?<![A-Za-z\d.])\d[\d.,]*")
SOURCE = re.compile(r"^% source (\w+)\.csv sha256 ([0-9a-f]{64})$", re.MULTILINE)


def bare_numbers(text: str) -> Iterator[tuple[int, str]]:
    """(line, number) of each number in a section's prose.

    Displayed equations, names and inline math with a letter in it are not prose; inline math
    that is only a number is.
    """
    lines = [("" if ALLOW.search(line) else COMMENT.sub("", line)) for line in text.split("\n")]
    text = "\n".join(lines)
    text = DISPLAY.sub(_blank, text)
    text = NAMES.sub(_blank, text)
    text = INLINE.sub(_blank_formula, text)
    for number, line in enumerate(text.split("\n"), 1):
        for match in NUMBER.finditer(line):
            yield number, match[0]


def _blank(match: re.Match) -> str:
    """Spaces in place of a match, so that lines keep their numbers."""
    return re.sub(r"[^\n]", " ", match[0])


def _blank_formula(match: re.Match) -> str:
    """The same for mathematics with a letter; a formula that is only a number stays."""
    formula = match[1] or match[2] or ""
    return _blank(match) if re.search("[A-Za-z]", formula) else match[0]


def _prose(paper: Path, numbers: Path) -> Iterator[str]:
    known = set(re.findall(r"\\setres\{([^}]*)\}", _read(numbers)))
    cited = set(re.findall(r"^@\w+\{([^,\s]+),", _read(paper / "references.bib"), re.MULTILINE))
    for path in sorted((paper / "sections").glob("*.tex")):
        text = _read(path)
        for line, number in bare_numbers(text):
            yield (
                f"{path}:{line}: bare number {number}; use \\res{{key}}, or end the line with "
                "`% allow-number: why` if it is no result"
            )
        uncommented = "\n".join(COMMENT.sub("", line) for line in text.split("\n"))
        for key in re.findall(r"\\res\{([^}]*)\}", uncommented):
            if key not in known:
                yield f"{path}: {numbers} has no key {key}"
        for keys in re.findall(r"\\cite\w*\*?(?:\[[^\]]*\])*\{([^}]*)\}", uncommented):
            for key in keys.split(","):
                if key.strip() not in cited:
                    yield f"{path}: references.bib has no entry {key.strip()}"


def _sources(generated: Iterable[Path], csv: Path) -> Iterator[str]:
    for path in generated:
        for table, noted in SOURCE.findall(_read(path)):
            file = csv / f"{table}.csv"
            if not file.exists() or schema.digest(csv, table) != noted:
                yield f"{path}: made from another {file}; remove it and build the paper again"


def _split(csv: Path, numbers: Path) -> Iterator[str]:
    """Samples by which choices were made are told on the first page (main.tex)."""
    frame = schema.read(csv, "provenance")
    splits = set(frame.loc[frame["item"] == "split", "value"])
    if splits != {"test"} and "\\developmentstudytrue" not in _read(numbers):
        yield (
            f"{numbers}: does not say that samples are of the split {', '.join(sorted(splits))}; "
            "remove it and build the paper again"
        )


def _read(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path} is missing; build the paper again")
    return path.read_text(encoding="utf-8")


def check(paper: Path, numbers: Path, tables: Iterable[Path], csv: Path) -> str:
    """What was checked, in words.

    Args:
        paper: folder of sections/ and references.bib.
        numbers: numbers.tex of the study.
        tables: its generated tables.
        csv: folder of its CSV files.

    Raises:
        UserError: lists everything that is wrong.
    """
    problems = [*_prose(paper, numbers), *_sources([numbers, *tables], csv)]
    problems += _split(csv, numbers)
    if problems:
        raise UserError("the paper does not follow from its data:\n  " + "\n  ".join(problems))
    sections = len(list((paper / "sections").glob("*.tex")))
    cells = len(schema.read(csv, "code_digests"))
    return (
        f"{sections} sections without bare numbers, unknown keys or unknown citations; "
        f"generated files match the CSV files of {cells} cells\n"
    )
