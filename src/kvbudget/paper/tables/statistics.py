"""The paired comparisons of our method, and of its variants with it, over many places together.

Those of single places are marks in the tables of experiments, and rows of comparisons.csv.
"""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.source import Source
from kvbudget.paper.tables import differences
from kvbudget.paper.template import render


def text(src: Source) -> str:
    """LaTeX of two groups of floats: against each reference, and of the variants."""
    ours = src.study.ours
    pooled = src.table("pooled")
    title = latex.title(src.study, "methods", ours) if ours else ""
    floats = [
        *_floats(src, _against(pooled, ours), "reference", rf"{title} minus each reference"),
        *_floats(
            src, pooled[pooled["kind"] == "ablation"], "method", rf"Each variant minus {title}"
        ),
    ]
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:statistics-{number}"
    return render("statistics.tex.j2", notes=src.notes(), floats=floats)


def _against(frame: pd.DataFrame, ours: str | None) -> pd.DataFrame:
    return frame[(frame["method"] == ours) & frame["kind"].isin(["full", "baseline"])]


def _floats(src: Source, frame: pd.DataFrame, named: str, caption: str) -> Iterator[dict]:
    experiments = {each["name"]: layout.experiment_title(each) for each in src.study.experiments}
    caption += (
        ", over all headline tasks and lengths (places, scored or not) of an experiment together; "
        "each context counts once."
    )
    by = ["experiment", "model", "budget", named]
    for names in differences.metrics(frame):
        part = frame[frame["metric"].isin(names)]
        rows = []
        for values, group in part.groupby(by, sort=False):
            experiment, model, budget, method = values
            cells = [
                layout.named(src.study, "methods", method),
                latex.budget(budget, bool(group["all_kept"].all())),
                # Where some places have no score, the likelihood has more of them.
                Latex(f"{group['places'].max():,}"),
                *differences.cells(group, names),
            ]
            heading = rf"{experiments[experiment]}: {latex.title(src.study, 'models', model)}"
            rows.append(Row(Latex(heading), cells))
        whole = caption + differences.note(part)
        for number, piece in enumerate(layout.by_height(rows)):
            yield {
                "rows": piece,
                "head": {"reference": "reference", "method": "variant"}[named],
                "heads": differences.heads(names),
                "caption": Latex(whole + (" (Continued.)" if number else "")),
            }
