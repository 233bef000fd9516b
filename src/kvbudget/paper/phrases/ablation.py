"""How the variants of Head-Aware compare with it."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import findings, latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import METRIC_TITLE, count, gap, title
from kvbudget.paper.source import Source

#: Combinations of model and budget that are told one by one.
FEW = 2


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Which variants are clearly better or worse, by how much, and which are not."""
    yield "summary/ablation", _ablation(src)


def _ablation(src: Source) -> Latex:
    frame = src.table("pooled")
    frame = frame[frame["kind"] == "ablation"]
    if frame.empty:
        return Latex("This study holds no headline comparison of a variant with Head-Aware.")
    # As in the table beside it: two experiments may hold one pair.
    frame = frame[frame["experiment"] == findings.largest(frame)]
    by = ["model", "budget", "metric"]
    places = len(frame[by[:2]].drop_duplicates())
    if places > FEW:
        return Latex(_counted(src, frame[frame["metric"] == frame["metric"].iloc[0]]))
    groups = frame.groupby(by, sort=False)
    return Latex(" ".join(_group(src, part, places > 1) for _, part in groups))


def _counted(src: Source, frame: pd.DataFrame) -> str:
    """How often each variant is clearly better and worse in one metric, where places are many."""
    metric = METRIC_TITLE[frame["metric"].iloc[0]]
    alike: dict[str, list[Latex]] = {}
    for method, part in frame.groupby("method", sort=False):
        verdicts = part["verdict"].value_counts()
        told = [f"clearly {v} in {verdicts[v]}" for v in ("worse", "better") if v in verdicts]
        of = f"{' and '.join(told)} of {count(len(part), 'comparison')} in {metric}" if told else ""
        alike.setdefault(of, []).append(Latex(rf"\emph{{{title(src, str(method))}}}"))
    texts = [
        f"{latex.listing(named)} {'is' if len(named) == 1 else 'are each'} {of}."
        for of, named in alike.items()
        if of
    ]
    if "" in alike:
        texts.append(f"In {metric} no clear difference shows for {latex.listing(alike[''])}.")
    return " ".join(texts)


def _group(src: Source, part: pd.DataFrame, several: bool) -> str:
    """Sentences of one model, budget and metric."""
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
    model = latex.title(src.study, "models", row["model"])
    budget = latex.budget(row["budget"], row["all_kept"])
    return f" ({model}, {budget})"
