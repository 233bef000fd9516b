"""All methods beside each other, a column a place, as in the tables of lengths and of tasks."""

from collections.abc import Iterator

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.phrases.words import METRIC_TITLE
from kvbudget.paper.source import Source
from kvbudget.paper.tables.marks import MEANING, marks
from kvbudget.paper.tables.quality import by_metric
from kvbudget.study.plan import FULL

METRICS = ("score", "nll")

#: Model, task and length.
Place = tuple[str, str, int]


def keys(src: Source, places: list[Place], budget: str) -> list[list[tuple]]:
    """Keys of cells, a row a main method: those measured at half of the places or more."""
    found = []
    for method in src.study.main_methods:
        own = FULL if src.study.policy(method) == FULL else budget
        row = [(*place, method, own) for place in places]
        if 2 * len(src.measured.intersection(row)) >= len(row):
            found.append(row)
    return found


def rows(src: Source, found: list[list[tuple]], group: str = "") -> Iterator[Row]:
    """Score and NLL of these cells, under headings that begin with `group`."""
    values, marked = by_metric(src), marks(src)
    for metric in METRICS:
        for row in found:
            named = [(*key, metric) for key in row]
            if any(name in values for name in named):
                cells = [_cell(values.get(name), marked.get(name, "")) for name in named]
                title = layout.named(src.study, "methods", row[0][3])
                yield Row(Latex(group + METRIC_TITLE[metric]), [title, *cells])


def _cell(found: dict | None, mark: str) -> Latex:
    if found is None:
        return Latex(latex.DASH)
    number = Latex(latex.decimal(found["value"]) + mark)
    return number if found["headline"] else Latex(rf"\weak{{{number}}}")


def note(src: Source, found: list[list[tuple]]) -> str:
    """What a caption says of numbers and marks."""
    ours = latex.title(src.study, "methods", src.study.ours) if src.study.ours else "Head-Aware"
    shown = [key for row in found for key in row]
    places = {key[:3] for key in shown}
    weak = src.places.query("not headline")[["model", "task", "length"]]
    failing = places.intersection(weak.itertuples(index=False, name=None))
    italics = (
        r" \weak{In italics}: places at which the full cache fails, no headline." if failing else ""
    )
    return (
        f"{layout.sample_note(src, shown)} {MEANING.format(ours)}{italics} Intervals are in "
        r"\cref{sec:results}."
    )
