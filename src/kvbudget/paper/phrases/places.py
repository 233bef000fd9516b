"""How Head-Aware compares with its peers place by place, where it evicts."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, shown
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import (
    METRIC_TITLE,
    NAMED,
    NO_OURS,
    bits,
    capital,
    count,
    decidable,
    none,
    title,
)
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES, FULL

#: The least difference that prints.
LEAST = 0.01


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """How often differences are clear: by bits, on all tasks, where the full cache fails; and where
    ours loses."""
    yield "summary/bits", _by_bits(src)
    yield "summary/breadth", _breadth(src)
    yield "summary/tasks", _by_task(src)
    yield "summary/outside", _outside(src)
    yield "summary/losses", _losses(src)


def _baselines(src: Source, strictest: bool) -> pd.DataFrame:
    """Comparisons of ours with each baseline, place by place.

    A pair that several experiments hold counts once: as judged in the strictest of its families, or
    in the mildest, where a loss must not be missed.
    """
    frame = src.comparisons
    frame = frame[(frame["kind"] == "baseline") & (frame["method"] == src.study.ours)]
    frame = frame[~frame["all_kept"]]
    frame = frame.sort_values("p_holm", ascending=not strictest, kind="stable")
    return frame.drop_duplicates([*AXES, "reference", "metric"]).sort_index()


def _by_bits(src: Source) -> Latex:
    """How often a difference is clear, against peers in sixteen and in fewer bits apart."""
    frame = _baselines(src, strictest=True)
    frame = frame[frame["headline"]]
    if frame.empty:
        return Latex("No comparison with a baseline counts as headline.")
    texts = [
        f"Against peers in {bits(name)}, {_verdicts(part, 'headline comparison')}."
        for (name, _), part in frame.groupby(["reference_bits", "metric"], sort=False)
    ]
    return Latex(" ".join(texts))


def _verdicts(part: pd.DataFrame, what: str) -> str:
    """How often ours is clearly better and worse, in comparisons of one metric."""
    of = f"{count(len(part), what)} in {METRIC_TITLE[part['metric'].iloc[0]]}"
    better, worse = ((part["verdict"] == verdict).sum() for verdict in ("better", "worse"))
    if not better and not worse:
        return f"no difference is clear among {of}"
    return (
        f"Head-Aware is clearly better in {none(better)} and clearly worse in {none(worse)} of {of}"
    )


def _breadth(src: Source) -> Latex:
    """Mean scores over tasks at one length and budget, of ours, the full cache and the best peer;
    nothing where these are few."""
    chosen = shown.tasks(src)
    if chosen is None or src.study.ours is None:
        return Latex("")
    cells = src.cells[(src.cells["metric"] == "score") & src.cells["headline"]]
    cells = cells[cells["length"] == chosen.length]
    cells = cells[cells["budget"].isin([chosen.budget, FULL])]
    texts = []
    for model in chosen.models:
        scores = cells[cells["model"] == model].pivot(
            index="method", columns="task", values="value"
        )
        means = scores.dropna().mean(axis=1)  # of what is measured on all of them
        peers = means.reindex(src.study.baselines).dropna()
        full = means[[src.study.policy(method) == FULL for method in means.index]]
        if src.study.ours not in means or peers.empty or full.empty:
            continue
        texts.append(
            f"On {count(scores.shape[1], 'task')} at {chosen.length:,} tokens "
            f"{latex.title(src.study, 'models', model)} scores "
            f"{latex.decimal(means[src.study.ours])} in the mean with Head-Aware; "
            f"{latex.decimal(full.iloc[0])} with the full cache; {latex.decimal(peers.max())} with "
            f"the best peer, {title(src, str(peers.idxmax()))}."
        )
    return Latex(" ".join(texts))


def _by_task(src: Source) -> Latex:
    """How ours fares against each peer over tasks at one length and budget; nothing where these are
    few."""
    chosen = shown.tasks(src)
    if chosen is None:
        return Latex("")
    frame = _baselines(src, strictest=True)
    there = (frame["length"] == chosen.length) & (frame["budget"] == chosen.budget)
    frame = frame[there & frame["headline"]]
    texts = []
    for metric in ("score", "nll"):
        told = []
        of_metric = frame[frame["metric"] == metric]
        pairs = len(of_metric[["model", "task"]].drop_duplicates())
        for reference, part in of_metric.groupby("reference", sort=False):
            if 2 * len(part) < pairs:  # nor does it stand in the table
                continue
            better, worse = ((part["verdict"] == v).sum() for v in ("better", "worse"))
            whom = f"against {title(src, str(reference))}"
            told.append(
                f"{whom} in {none(better)} of {len(part)} and in {none(worse)}"
                if told
                else f"{whom}, Head-Aware is clearly better in {METRIC_TITLE[metric]} in "
                f"{none(better)} of {count(len(part), 'headline pair')} of model and task and "
                f"clearly worse in {none(worse)}"
            )
        if told:
            texts.append(capital(f"{'; '.join(told)}."))
    return Latex(" ".join(texts))


def _outside(src: Source) -> Latex:
    """How ours fares where the full cache fails; nothing where it fails nowhere."""
    frame = _baselines(src, strictest=False)
    frame = frame[~frame["headline"]]
    if frame.empty:
        return Latex("")
    models = [model for model in src.study.models if model in set(frame["model"])]
    named = latex.listing(latex.title(src.study, "models", model) for model in models)
    metric = min(set(frame["metric"]), key=list(METRIC_TITLE).index)
    told = _verdicts(frame[frame["metric"] == metric], "comparison")
    return Latex(
        f"Where the full cache itself fails (at places of {named}), which is no headline, {told}."
    )


def _losses(src: Source) -> Latex:
    """To whom ours loses with each model, how often and by how much; headline or not."""
    frame = _baselines(src, strictest=False)
    if frame.empty:
        return NO_OURS
    if not (frame["verdict"] == "worse").any():
        if not decidable(frame).any():
            return Latex("With so few contexts no comparison could have shown a loss.")
        return Latex(
            "In no comparison with a baseline, headline or not, is Head-Aware clearly worse."
        )
    texts = []
    for model in src.study.models:
        mine = frame[frame["model"] == model]
        lost = mine[mine["verdict"] == "worse"]
        name = latex.title(src.study, "models", model)
        if lost.empty and len(mine):
            texts.append(f"With {name}, it is clearly worse in none of {len(mine)} comparisons.")
        for metric in (name for name in METRIC_TITLE if name in set(lost["metric"])):
            of_metric = mine[mine["metric"] == metric]
            told = "; ".join(_lost_to(src, of_metric))
            texts.append(
                f"With {name}, Head-Aware is clearly worse in {METRIC_TITLE[metric]} than {told}."
            )
    return Latex(" ".join(texts))


def _lost_to(src: Source, frame: pd.DataFrame) -> Iterator[str]:
    """The peers that are clearly better in one metric, those first to which most is lost."""
    groups = [
        (reference, part, part[part["verdict"] == "worse"]["difference"].abs())
        for reference, part in frame.groupby("reference", sort=False)
    ]
    groups = sorted((each for each in groups if len(each[2])), key=lambda each: -len(each[2]))
    for reference, part, lost in groups[:NAMED]:
        most = "by" if len(lost) == 1 else "by up to"
        yield (
            f"{title(src, str(reference))} in {len(lost)} of {count(len(part), 'comparison')}, "
            f"{most} {_size(lost.max())}"
        )
    if len(groups) > NAMED:
        yield f"and than {count(len(groups) - NAMED, 'other peer')}"


def _size(difference: float) -> str:
    """A difference that is clear; never one that prints as nothing."""
    return latex.decimal(difference) if difference >= LEAST / 2 else f"less than {LEAST}"
