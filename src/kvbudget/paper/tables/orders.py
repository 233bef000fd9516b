"""Whether methods stand in the orders that an experiment names: a row a pair of neighbours."""

from collections.abc import Iterator

from kvbudget.paper import budgets, latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import INTERVAL, Column, Row
from kvbudget.paper.source import Source

COLUMNS = (
    Column("score", Latex(r"\(\Delta\) score"), INTERVAL),
    Column("nll", Latex(r"\(\Delta\) NLL"), INTERVAL),
)
VERDICTS = {"better": "holds", "worse": "contrary", "unclear": "unclear"}
#: The width of a verdict, in points.
WORD = 40


def floats(src: Source, experiment: dict, model: str, keys: list[tuple]) -> Iterator[dict]:
    """Floats of the experiment's orders for one model, by as many lengths as fit side by side."""
    frame = src.table("orders")
    frame = frame[(frame["experiment"] == experiment["name"]) & (frame["model"] == model)]
    if frame.empty:
        return
    by = ["order", "task", "budget", "method", "reference", "length", "metric"]
    found = {tuple(row[name] for name in by): row for row in frame.to_dict("records")}
    columns = [
        column
        for each in COLUMNS
        if each.metric in set(frame["metric"])
        for column in (each, Column(each.metric, Latex("order"), WORD))
    ]
    contexts = layout.span(frame["n_contexts"])
    caption = (
        rf"{layout.experiment_title(experiment)}. {latex.title(src.study, 'models', model)}: "
        r"methods in an expected order, each minus the next, paired by context with 95\% intervals "
        r"in brackets. The order \emph{holds}, or its \emph{contrary} does, where a paired "
        r"permutation test says so after Holm's correction over all pairs of the experiment; "
        rf"elsewhere it is \emph{{unclear}}. \(n\) = {contexts} contexts."
    )
    for lengths in layout.by_width(sorted(set(frame["length"])), columns):
        rows = []
        pairs = frame[by[:-2]].drop_duplicates().itertuples(index=False, name=None)
        for pair in sorted(pairs, key=lambda pair: (pair[0], budgets.order(pair[2]))):
            _, task, budget, *methods = pair
            ahead, behind = (latex.title(src.study, "methods", method) for method in methods)
            cells = [
                cell
                for length in lengths
                for each in columns[::2]
                for cell in _cells(found.get((*pair, length, each.metric)))
            ]
            named = Latex(rf"\named{{{ahead} \(>\) {behind}}}")
            group = latex.title(src.study, "tasks", task)
            rows.append(Row(group, [named, latex.budget(budget), *cells]))
        yield from layout.floats(rows, lengths, columns, caption)


def _cells(row: dict | None) -> tuple[Latex, Latex]:
    if row is None:
        return Latex(latex.DASH), Latex(latex.DASH)
    difference = layout.with_interval(row["difference"], row["ci_low"], row["ci_high"], signed=True)
    return difference, Latex(VERDICTS[row["verdict"]])
