"""How the variants of Head-Aware compare with it."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import METRIC_TITLE, gap, title
from kvbudget.paper.source import Source


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Which variants are clearly better or worse, by how much, and which are not."""
    yield "summary/ablation", _ablation(src)


def _ablation(src: Source) -> Latex:
    frame = src.table("pooled")
    frame = frame[frame["kind"] == "ablation"]
    if frame.empty:
        return Latex("This study holds no headline comparison of a variant with Head-Aware.")
    by = ["experiment", "model", "budget", "metric"]
    groups = frame.groupby(by, sort=False)
    several = len(frame[by[:3]].drop_duplicates()) > 1
    return Latex(" ".join(_group(src, part, several) for _, part in groups))


def _group(src: Source, part: pd.DataFrame, several: bool) -> str:
    """Sentences of one experiment, model, budget and metric."""
    first = part.iloc[0]
    metric = METRIC_TITLE[first["metric"]]
    place = _place(src, first) if several else ""
    texts = [
        rf"\emph{{{title(src, row['method'])}}} is clearly {row['verdict']} in {metric}{place}, by "
        f"{gap(row)}."
        for row in part.to_dict("records")
        if row["verdict"] != "unclear"
    ]
    unclear = part.loc[part["verdict"] == "unclear", "method"]
    if not unclear.empty:
        named = latex.listing(Latex(rf"\emph{{{title(src, method)}}}") for method in unclear)
        texts.append(f"In {metric}{place} no clear difference shows for {named}.")
    return " ".join(texts)


def _place(src: Source, row: pd.Series) -> str:
    experiment = next(e for e in src.study.experiments if e["name"] == row["experiment"])
    model = latex.title(src.study, "models", row["model"])
    budget = latex.budget(row["budget"], row["all_kept"])
    return rf" (\emph{{{layout.experiment_title(experiment)}}}, {model}, {budget})"
