"""All methods beside each other, a column a place, as in the tables of lengths and of tasks."""

from collections.abc import Iterator, Mapping

from kvbudget.paper import latex, layout, shown
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.source import Source
from kvbudget.paper.tables.marks import MEANING, marks
from kvbudget.paper.tables.quality import by_metric
from kvbudget.paper.template import render

#: Model, task and length.
Place = tuple[str, str, int]


def table(src: Source, name: str, floats: list[dict], empty: str = "") -> str:
    """LaTeX of floats, each with `models` over columns, if any, `heads` of all columns, `rows` and
    `caption`; where there is no float, what is said in its place."""
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:{name}-{number}"
    return render("abreast.tex.j2", notes=src.notes(), name=name, floats=floats, empty=empty)


def keys(src: Source, places: list[Place], budget: str) -> list[list[tuple]]:
    """Keys of cells, a row a method that `shown.methods` names."""
    return [
        [shown.key(src, place, method, budget) for place in places]
        for method in shown.methods(src, places, budget)
    ]


def rows(src: Source, found: list[list[tuple]], headings: Mapping[str, str]) -> Iterator[Row]:
    """These cells in the metrics that have a heading, each under its own."""
    values, marked, failing = by_metric(src), marks(src), _failing(src)
    for metric, heading in headings.items():
        for row in found:
            named = [(*key, metric) for key in row]
            if any(name in values for name in named):
                cells = [_cell(values.get(n), marked.get(n, ""), n[:3] in failing) for n in named]
                title = layout.named(src.study, "methods", row[0][3])
                yield Row(Latex(heading), [title, *cells])


def _cell(found: dict | None, mark: str, weak: bool) -> Latex:
    if found is None:
        return Latex(latex.DASH)
    number = Latex(latex.decimal(found["value"]) + mark)
    return Latex(rf"\weak{{{number}}}") if weak else number


def _failing(src: Source) -> set[Place]:
    """Places at which the full cache fails."""
    return set(src.failing.itertuples(index=False, name=None))


def at(budget: str) -> str:
    """`at a budget of 10% of the bytes`."""
    of = "tokens" if budget.isdigit() else "of the bytes"
    return f"at a budget of {latex.budget(budget)} {of}"


def note(src: Source, found: list[list[tuple]]) -> str:
    """What a caption says of numbers, marks and rows."""
    ours = latex.title(src.study, "methods", src.study.ours) if src.study.ours else "Head-Aware"
    cells = [key for row in found for key in row]
    texts = [layout.sample_note(src, cells), MEANING.format(ours)]
    if _failing(src).intersection(key[:3] for key in cells):
        texts.append(r"\weak{In italics}: places at which the full cache fails, no headline.")
    if _left_out(src, cells):
        texts.append("Methods measured in fewer than half of the columns are left out.")
    return " ".join([*texts, r"Intervals are in \cref{sec:results}."])


def _left_out(src: Source, cells: list[tuple]) -> bool:
    """Whether some main method is measured there and has no row."""
    places, budgets = {key[:3] for key in cells}, {key[4] for key in cells}
    there = {key[3] for key in src.measured if key[:3] in places and key[4] in budgets}
    return not there.intersection(src.study.main_methods) <= {key[3] for key in cells}
