"""What comparisons can show: which places count as headline, how small an effect is seen."""

from collections.abc import Iterator

from kvbudget.analysis.statistics import RESAMPLES
from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import ALPHA, METRIC_TITLE, NO_OURS, SHOWN, count
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Sentences of the protocol and of its power."""
    yield "summary/headline", _headline_tasks(src)
    yield "summary/power", _power(src)


def _headline_tasks(src: Source) -> Latex:
    if not (src.cells["policy"] == FULL).any():
        return Latex("This study measures no full cache, so no place is headline.")
    weak, total = src.places.query("not headline"), len(src.places)
    if not total:
        return Latex("No task of this study is scored, so every place counts.")
    combinations = f"{count(total, 'combination')} of model, task and length"
    if weak.empty:
        verb = "is" if total == 1 else "are"
        return Latex(f"In this study {combinations} {verb} scored, and none fails.")
    names = latex.listing(
        Latex(
            f"{latex.title(src.study, 'models', place['model'])} on "
            f"{latex.title(src.study, 'tasks', place['task'])} at {place['length']:,} tokens"
        )
        for place in weak.to_dict("records")[:SHOWN]
    )
    more = " and others" if len(weak) > SHOWN else ""
    return Latex(
        f"In this study {len(weak)} of {combinations} fail and count for no headline: "
        f"{names}{more}."
    )


def _power(src: Source) -> Latex:
    frame = src.comparisons[src.comparisons["kind"] == "baseline"]
    if frame.empty:
        return NO_OURS
    contexts = int(frame["n_contexts"].min())
    if contexts < 2:
        return Latex("With one context a cell there is no interval and no test.")
    half = (frame["ci_high"] - frame["ci_low"]) / 2
    widths = [
        f"{latex.decimal(half[frame['metric'] == metric].median())} in {title}"
        for metric, title in METRIC_TITLE.items()
        if (frame["metric"] == metric).any()
    ]
    family = int(frame.groupby("metric").size().max())
    shown = [
        f"{latex.decimal(column.median())} in {title}"
        for metric, title in METRIC_TITLE.items()
        if not (column := frame.loc[frame["metric"] == metric, "detectable"].dropna()).empty
    ]
    visible = (
        "At the variance observed, a comparison shows a true difference of "
        f"{' and '.join(shown)} with 80\\% power (medians, before correction). "
        if shown
        else ""
    )
    least = max(2 / 2**contexts, 1 / (RESAMPLES + 1))
    reach = "can" if family * least < ALPHA else "cannot"
    return Latex(
        f"With {contexts} contexts, half the width of the interval of a difference is in the "
        f"median {' and '.join(widths)}. {visible}A permutation test of {contexts} pairs gives "
        f"no \\(p\\) below {_tiny(least)}, and Holm's correction over "
        f"{count(family, 'comparison')} asks the best of them for "
        f"\\(p<{_tiny(ALPHA / family)}\\), which it {reach} reach."
    )


def _tiny(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "0.0001"
