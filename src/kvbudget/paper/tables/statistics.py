"""The paired comparisons of our method, and of its variants with it."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.source import Source
from kvbudget.paper.tables import differences
from kvbudget.paper.template import render

#: What stands for the task where all are taken together.
_TOGETHER = "all headline tasks"


def text(src: Source) -> str:
    """LaTeX of three groups of floats: pooled, against each reference, and of the variants."""
    ours = src.study.ours
    frame = src.comparisons
    variants = frame[frame["kind"] == "ablation"]
    pooled = src.table("pooled").assign(task=_TOGETHER, headline=True)
    # Where some places have no score, the likelihood has more of them.
    same = ["experiment", "model", "budget", "method", "reference", "kind"]
    pooled["length"] = pooled.groupby(same)["places"].transform("max")
    title = latex.title(src.study, "methods", ours) if ours else ""
    floats = [
        *_floats(
            src,
            _against(pooled, ours),
            "reference",
            rf"{title} minus each reference, over all headline tasks and lengths (places, scored "
            r"or not) of an experiment together; each context counts once.",
            place="places",
        ),
        *_floats(src, _against(frame, ours), "reference", rf"{title} minus each reference."),
        *_floats(src, variants, "method", rf"Each variant minus {title}."),
    ]
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:statistics-{number}"
    return render("statistics.tex.j2", notes=src.notes(), floats=floats)


def _against(frame: pd.DataFrame, ours: str | None) -> pd.DataFrame:
    return frame[(frame["method"] == ours) & frame["kind"].isin(["full", "baseline"])]


def _floats(
    src: Source, frame: pd.DataFrame, named: str, caption: str, place: str = "tokens"
) -> Iterator[dict]:
    experiments = {each["name"]: layout.experiment_title(each) for each in src.study.experiments}
    by = ["experiment", "model", "task", "length", "budget", named]
    for names in differences.metrics(frame):
        part = frame[frame["metric"].isin(names)]
        rows = []
        for values, group in part.groupby(by, sort=False):
            experiment, model, task, length, budget, method = values
            mark = "" if group["headline"].all() else r"\(^\dagger\)"
            cells = [
                # Narrower than elsewhere, as there are two titles to a row.
                Latex(rf"\named[1in]{{{latex.title(src.study, 'tasks', task)}}}{mark}"),
                Latex(f"{length:,}"),
                latex.budget(budget, bool(group["all_kept"].all())),
                layout.named(src.study, "methods", method),
                *differences.cells(group, names),
            ]
            heading = rf"{experiments[experiment]}: {latex.title(src.study, 'models', model)}"
            rows.append(Row(Latex(heading), cells))
        whole = caption + differences.note(part) + _weak(part)
        for number, piece in enumerate(layout.by_height(rows)):
            yield {
                "rows": piece,
                "head": {"reference": "reference", "method": "variant"}[named],
                "heads": differences.heads(names),
                "place": place,
                "caption": Latex(whole + (" (Continued.)" if number else "")),
            }


def _weak(frame: pd.DataFrame) -> str:
    if frame["headline"].all():
        return ""
    return (
        r" \(\dagger\): the full cache, chance taken off, scores below one half, so the row is no "
        r"headline."
    )
