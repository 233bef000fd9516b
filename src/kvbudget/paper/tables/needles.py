"""What answers are where one of several needles is asked for: a row for each method and budget."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import INTERVAL, Column, Row
from kvbudget.paper.source import Source
from kvbudget.paper.tables.quality import by_metric

COLUMNS = (
    Column("any", Latex("any needle"), INTERVAL),
    # Of few answers, so without an interval.
    Column("given_any", Latex(r"\shortstack[r]{right\\given any}")),
    Column("choice", Latex("forced choice"), INTERVAL),
)


def floats(src: Source, experiment: dict, model: str, keys: list[tuple]) -> Iterator[dict]:
    """Floats of the experiment's cells of one model that choose among needles."""
    values = by_metric(src)
    mine = [key for key in keys if (*key, "chance") in values]
    if not mine:
        return
    caption = (
        rf"{layout.experiment_title(experiment)}. {latex.title(src.study, 'models', model)}: "
        rf"which needle the answer is. {layout.sample_note(src, mine)} \emph{{Any needle}}: the "
        r"answer is some needle of the context; \emph{right given any}: the score of those; "
        r"\emph{forced choice}: the right needle is the likeliest of the context's. In brackets: "
        r"95\% intervals over contexts."
    )
    for lengths in layout.by_width(sorted({key[2] for key in mine}), list(COLUMNS)):
        rows, columns = [], COLUMNS * len(lengths)
        for task in dict.fromkeys(key[1] for key in mine):
            of_task = [key for key in mine if key[1] == task]
            group = _group(src, task, [values[*key, "chance"]["value"] for key in of_task])
            for method, budget in layout.method_budget_rows(src.study, of_task):
                places = [(model, task, length, method, budget) for length in lengths]
                cells = [values.get((*key, c.metric)) for key in places for c in COLUMNS]
                named = layout.named(src.study, "methods", method)
                rows.append(
                    Row(group, [named, layout.budget(src, places), *map(_cell, columns, cells)])
                )
        yield from layout.floats(rows, lengths, list(COLUMNS), caption)


def _group(src: Source, task: str, chances: list[float]) -> Latex:
    chance = latex.decimal(pd.Series(chances).mean())
    return Latex(f"{latex.title(src.study, 'tasks', task)} (chance {chance})")


def _cell(column: Column, found: dict | None) -> Latex:
    if not found:
        return Latex(latex.DASH)
    if column.width < INTERVAL:
        return latex.decimal(found["value"])
    return layout.with_interval(found["value"], found["ci_low"], found["ci_high"])
