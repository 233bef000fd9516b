"""How Head-Aware compares with the full cache and with its baselines."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import ALPHA, METRIC_TITLE, NO_OURS, count, shortened, tally
from kvbudget.paper.source import Source


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Counts of verdicts, and sentences that say where each comparison went."""
    for kind in ("full", "baseline"):
        frame = _ours(src, kind)
        for metric in METRIC_TITLE:
            for name, number in tally(frame[frame["metric"] == metric]).items():
                yield f"summary/{kind}/{metric}/{name}", latex.decimal(number, 0)
    yield "summary/short", _short(src)
    yield "summary/full", _against_each(src, "full")
    yield "summary/baselines", _against_each(src, "baseline")
    yield "summary/pooled", _pooled(src)
    yield "summary/losses", _losses(src)


def _ours(src: Source, kind: str) -> pd.DataFrame:
    """Headline comparisons of our method."""
    frame = src.comparisons
    own = (frame["method"] == src.study.ours) & (frame["kind"] == kind)
    return frame[own & frame["headline"]]


def _short(src: Source) -> Latex:
    """The result in few words: against all baselines together, and against the full cache."""
    baselines = latex.listing(latex.title(src.study, "methods", m) for m in src.study.baselines)
    texts = []
    for kind, name in (("baseline", f"with {baselines}"), ("full", "with the full cache")):
        frame = _ours(src, kind)
        tallies = {m: tally(frame[frame["metric"] == m]) for m in METRIC_TITLE}
        counts = [
            f"in {METRIC_TITLE[metric]} better in {t['better']}, worse in {t['worse']} and unclear "
            f"in {t['unclear']} of {t['all']}"
            for metric, t in tallies.items()
            if t["all"]
        ]
        if counts:
            texts.append(f"In headline comparisons {name} Head-Aware is {'; '.join(counts)}.")
    return Latex(" ".join(texts)) if texts else NO_OURS


def _against_each(src: Source, kind: str) -> Latex:
    frame = _ours(src, kind)
    texts = []
    for reference in dict.fromkeys(frame["reference"]):
        part = frame[frame["reference"] == reference]
        sentences = [s for s in (_sentence(part, metric) for metric in METRIC_TITLE) if s]
        title = latex.title(src.study, "methods", reference)
        texts.append(f"Against {title}, " + "; ".join(sentences) + ".")
    return Latex(" ".join(texts)) if texts else NO_OURS


def _sentence(frame: pd.DataFrame, metric: str) -> str:
    part = frame[frame["metric"] == metric]
    if part.empty:
        return ""
    t = tally(part)
    mean = latex.signed(float(part["difference"].mean()))
    return (
        f"in {METRIC_TITLE[metric]} it is better in {t['better']}, worse in {t['worse']} and "
        f"unclear in {t['unclear']} of {count(t['all'], 'comparison')} "
        f"(mean difference {mean}; {t['holm']} with Holm-corrected "
        rf"\(p<{ALPHA}\))"
    )


def _pooled(src: Source) -> Latex:
    """Our method against each reference, all headline tasks and lengths together."""
    frame = src.table("pooled")
    frame = frame[(frame["method"] == src.study.ours) & (frame["kind"] != "ablation")]
    if frame.empty:
        return NO_OURS
    texts = [
        f"{latex.title(src.study, 'models', row['model'])} at {latex.budget(row['budget'])} "
        f"against {latex.title(src.study, 'methods', row['reference'])}: "
        f"{latex.signed(row['difference'])} in {METRIC_TITLE[row['metric']]} "
        f"({row['verdict']}, \\(d\\) = {latex.signed(row['effect'])})"
        for row in frame.to_dict("records")
    ]
    return Latex(f"Over all headline tasks and lengths together: {shortened(texts)}.")


def _losses(src: Source) -> Latex:
    frame = src.comparisons
    mine = frame[(frame["method"] == src.study.ours) & (frame["kind"] == "baseline")]
    if mine.empty:
        return NO_OURS
    lost = mine[mine["verdict"] == "worse"]
    compared = count(len(mine), "comparison")
    if lost.empty:
        return Latex(
            f"In none of the {compared} with a baseline, headline or not, is the verdict that "
            "Head-Aware is worse."
        )
    places = []
    axes = ["model", "task", "length", "budget"]
    for (model, task, length, budget), group in lost.groupby(axes, sort=False):
        against = latex.listing(
            Latex(
                f"{latex.title(src.study, 'methods', row['reference'])} "
                f"({METRIC_TITLE[row['metric']]})"
            )
            for row in group.to_dict("records")
        )
        places.append(
            f"{latex.title(src.study, 'models', model)} on "
            f"{latex.title(src.study, 'tasks', task)}, {length:,} tokens, budget "
            f"{latex.budget(budget)}: {against}"
        )
    return Latex(
        f"Head-Aware is worse, with an interval clear of zero, in {len(lost)} of {compared} with "
        f"a baseline: {shortened(places)}."
    )
