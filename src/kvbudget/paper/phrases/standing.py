"""Which code measured the cells of a study, in words: `study/standing`."""

from collections.abc import Iterable, Iterator

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import SHOWN, count
from kvbudget.paper.source import Source
from kvbudget.study.standing import ATTESTED, EARLIER, MEASURED

WAYS = {
    MEASURED: "Measured by the code of this commit",
    ATTESTED: (
        "Measured by earlier code and attested, as contexts of them that the code of this commit "
        "computed again were the same to the last digit"
    ),
    EARLIER: "Measured by earlier code and not compared with this commit's",
}


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """How many cells were measured by which code."""
    counted = list(_counted(src))
    yield "study/counted", Latex(" ".join(counted))
    yield "study/standing", Latex(" ".join([*counted, *_changed(src)]))


def _counted(src: Source) -> Iterable[str]:
    codes = src.table("code_digests")
    counts = codes["standing"].value_counts()
    for kind, way in WAYS.items():
        if kind in counts:
            yield f"{way}: {counts[kind]} of {count(len(codes), 'record')}."


def _changed(src: Source) -> Iterable[str]:
    codes = src.table("code_digests")
    if changed := _distinct(codes.loc[codes["standing"] == EARLIER, "modules"]):
        named = [latex.escape(name) for name in changed[:SHOWN]]
        more = f", and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        yield f"Changed since those: {', '.join(named)}{more}."
    if libraries := _distinct(codes["libraries"]):
        yield f"Libraries that changed since: {', '.join(map(latex.escape, libraries))}."
    if left_out := src.study.left_out:
        yield (
            "Planned, and left out with experiments that little is published of: "
            f"{count(left_out, 'cell')}."
        )


def _distinct(column: Iterable[str]) -> list[str]:
    """All entries of a column of lists."""
    return sorted({each for row in column for each in row.split("; ") if each})
