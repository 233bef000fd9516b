"""What the calibration found about the heads."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import NO_CALIBRATION, count, percent, span
from kvbudget.paper.source import Source


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """How well scores are predicted, how many heads are of each class, and how far two halves of
    the calibration agree."""
    yield "summary/fit", _fit(src)
    yield "summary/ranks", _ranks(src)
    yield "summary/classes", _classes(src)
    yield "summary/stability", _stability(src)


def _fit(src: Source) -> Latex:
    """On what the scorer is fitted."""
    if src.table("scorer").empty:
        return NO_CALIBRATION
    own = next(each for each in src.study.calibrations if each.own)
    lengths = own.spec["scorer_lengths"]
    contexts = count(own.spec["scorer_contexts"] * len(lengths), "context")
    return Latex(
        f"In this study the map is fitted on {contexts} of {span(min(lengths), max(lengths), 0)} "
        "tokens."
    )


def _ranks(src: Source) -> Latex:
    """What the scorer's choice holds of what the best would, on texts that it was not fitted on."""
    frame = src.table("scorer")
    frame = frame[frame["features"] == "group"]
    if frame.empty:
        return NO_CALIBRATION
    ranks = src.table("ranks").groupby(["model", "features"])["correlation"].mean()
    texts = []
    several = frame["model"].nunique() > 1
    for model, group in frame.groupby("model", sort=False):
        (share, kept), *more = zip(group["share"], group["kept"], strict=True)
        if several:
            more = []
        rest = "".join(f"; of {percent(s)} they hold {percent(k)}" for s, k in more)
        texts.append(
            f"With {latex.title(src.study, 'models', model)}, the {percent(share)} of tokens that "
            f"the map ranks first hold {percent(kept)} of the scores that the truly best "
            f"hold{rest}. "
            f"Over the tokens of a head the map's ranks correlate with the true ones by "
            f"{ranks[model, 'group']:.2f}, those of a map of the head's own key and value by "
            f"{ranks[model, 'own']:.2f}{_of_hidden(ranks, model)}."
        )
    return Latex(" ".join(texts))


def _of_hidden(ranks: pd.Series, model: str) -> str:
    """The same of a map of hidden states, which only some studies ask for."""
    if (model, "hidden") not in ranks:
        return ""
    return f", and those of a map of the hidden state by {ranks[model, 'hidden']:.2f}"


def _classes(src: Source) -> Latex:
    heads = src.table("heads").drop_duplicates(["model", "layer", "kv_head"])
    if heads.empty:
        return NO_CALIBRATION
    texts = []
    for model, group in heads.groupby("model", sort=False):
        counts = group["class"].value_counts().sort_index()
        listed = latex.listing(f"{number} {name}" for name, number in counts.items())
        title = latex.title(src.study, "models", model)
        texts.append(f"{title} has {len(group)} KV heads. Its calibration calls {listed} heads.")
    return Latex(" ".join(texts))


def _stability(src: Source) -> Latex:
    """How well two halves of the calibration agree on what heads do and on what answers lose."""
    texts = []
    for model, group in src.table("stability").groupby("model", sort=False):
        listed = latex.listing(
            f"{signal} {value:.2f}"
            for signal, value in zip(group["signal"], group["correlation"], strict=True)
            if signal in ("retrieval", "induction") or signal.startswith("answer")
        )
        texts.append(f"{latex.title(src.study, 'models', model)}: {listed}.")
    if not texts:
        return Latex("The calibration is too small to be halved.")
    return Latex(
        "What heads are found to do, in two disjoint halves of the calibration, has rank "
        "correlations over heads of: " + " ".join(texts)
    )
