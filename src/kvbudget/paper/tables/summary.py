"""The main result: ours against each peer at each budget, over all headline places together."""

import pandas as pd

from kvbudget.paper import budgets, findings, latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.source import Source
from kvbudget.paper.tables import differences
from kvbudget.paper.template import render


def text(src: Source) -> str:
    """LaTeX of the main experiment's floats, one where it fits."""
    main = findings.main_experiment(src)
    pooled = src.table("pooled")
    pooled = pooled[
        (pooled["experiment"] == main)
        & (pooled["method"] == src.study.ours)
        & (pooled["kind"] == "baseline")
    ]
    pooled = pooled[pooled["budget"].isin(findings.budgets_shown(pooled))]
    floats = []
    for names in list(differences.metrics(pooled))[:1]:  # the appendix has the others
        part = pooled[pooled["metric"].isin(names)]
        for piece in layout.by_height(_rows(src, part, names)):
            caption = _caption(src, main, part)
            floats.append({"rows": piece, "heads": differences.heads(names), "caption": caption})
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:summary-{number}"
    return render("summary.tex.j2", notes=src.notes(), floats=floats)


def _rows(src: Source, frame: pd.DataFrame, names: list[str]) -> list[Row]:
    rows = []
    for model in dict.fromkeys(frame["model"]):
        of_model = frame[frame["model"] == model]
        for budget in sorted(set(of_model["budget"]), key=budgets.order):
            part = of_model[of_model["budget"] == budget]
            for reference, group in part.groupby("reference", sort=False):
                cells = [
                    latex.budget(budget, bool(group["all_kept"].all())),
                    layout.named(src.study, "methods", str(reference)),
                    latex.escape(group["reference_bits"].iloc[0]),
                    *differences.cells(group, names),
                ]
                rows.append(Row(latex.title(src.study, "models", model), cells))
    return rows


def _caption(src: Source, main: str | None, frame: pd.DataFrame) -> Latex:
    experiment = next(each for each in src.study.experiments if each["name"] == main)
    ours = latex.title(src.study, "methods", src.study.ours)
    bits = frame["bits"].iloc[0]
    return Latex(
        rf"{layout.experiment_title(experiment)}: {ours} ({bits} bits) minus each peer, over all "
        rf"headline tasks and lengths together.{differences.note(frame)}"
    )
