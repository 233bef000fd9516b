"""comparisons.csv and pooled.csv: head to head at equal bytes, paired by context."""

from collections import defaultdict
from collections.abc import Iterator

import pandas as pd

from kvbudget.analysis.cell_rows import full_caches, is_headline
from kvbudget.analysis.measured import Measured, by_place
from kvbudget.analysis.paired import Pair, judged, tested
from kvbudget.study.plan import OURS, Study


def comparison_rows(study: Study, groups: list[Measured]) -> pd.DataFrame:
    """Differences with interval, effect size, p and Holm's p, a row a task and length.

    What an experiment sets side by side is compared: every method with the full cache (`full`),
    ours with every baseline (`baseline`), and every variant of ours with ours (`ablation`).
    """
    rows = [
        {
            **pair.place(),
            **pair.named(metric),
            **tested(pair.values(metric), metric, study.seed),
            "headline": pair.headline,
            "all_kept": pair.mine.all_kept,
        }
        for pair in _pairs(study, groups)
        for metric in pair.metrics
    ]
    return judged(rows, study.config["families"])


def pooled_rows(study: Study, groups: list[Measured]) -> pd.DataFrame:
    """The same comparisons over all headline tasks and lengths of an experiment together.

    Contexts stay the clusters: each counts once, also one that several tasks share, as wait-k for
    several k does. What a paper claims follows from these rows, of all peers together, so a family
    holds all references.
    """
    found: dict[tuple, list[tuple[Pair, str]]] = defaultdict(list)
    for pair in _pairs(study, groups):
        for metric in pair.metrics if pair.headline else []:
            names = (("model", pair.mine.planned.model), *pair.named(metric).items())
            found[names].append((pair, metric))
    rows = [
        {
            **dict(names),
            "places": len(places),
            **tested(_by_context([p.values(m) for p, m in places]), places[0][1], study.seed),
            "all_kept": all(pair.mine.all_kept for pair, _ in places),
        }
        for names, places in found.items()
    ]
    families = [name for name in study.config["families"] if name != "reference"]
    return judged(rows, [*families, "kind"])


def _pairs(study: Study, groups: list[Measured]) -> Iterator[Pair]:
    full = full_caches(groups)
    for experiment in study.experiments:
        name = experiment["name"]
        for place, members in by_place(groups, name).items():
            headline = is_headline(full.get(place))
            for kind, mine, reference in _kinds(study, members):
                yield Pair(name, kind, mine, reference, headline)


def _kinds(
    study: Study, members: dict[tuple[str, str], Measured]
) -> Iterator[tuple[str, Measured, Measured]]:
    """Who is compared with whom, among what an experiment measured at one place."""
    full = next((each for each in members.values() if each.full), None)
    for (method, budget), each in members.items():
        if each.full:
            continue
        if full:
            yield "full", each, full
        if method == study.ours:
            for baseline in study.baselines:
                if (baseline, budget) in members:
                    yield "baseline", each, members[baseline, budget]
        elif each.planned.policy == OURS and (study.ours, budget) in members:
            yield "ablation", each, members[study.ours, budget]


def _by_context(places: list[pd.DataFrame]) -> pd.DataFrame:
    """Means over the places that a context stands in."""
    return pd.concat(places).groupby("context", sort=False).mean()
