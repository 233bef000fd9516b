"""comparisons.csv and pooled.csv: head to head at equal bytes, paired by context."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from kvbudget.analysis.cell_rows import full_caches, is_headline
from kvbudget.analysis.measured import Measured
from kvbudget.analysis.metrics import COMPARED, METRICS
from kvbudget.analysis.statistics import (
    Bounds,
    detectable,
    effect_size,
    holm,
    mean_interval,
    paired_p,
    verdict,
)
from kvbudget.study.plan import OURS, Study

DIFFERENCE: Bounds = (-1.0, 1.0)


@dataclass(frozen=True)
class Pair:
    """Two methods at one place of one experiment."""

    experiment: str
    kind: str
    mine: Measured
    reference: Measured
    headline: bool

    @cached_property
    def metrics(self) -> list[str]:
        return [name for name in COMPARED if self.mine.by_context(name)]

    def place(self) -> dict:
        p = self.mine.planned
        return {"model": p.model, "task": p.task, "length": p.length}

    def named(self, metric: str) -> dict:
        """What is compared with what; comparisons of one name at several places are pooled."""
        return {
            "experiment": self.experiment,
            "budget": self.mine.planned.budget,
            "method": self.mine.planned.method,
            "bits": self.mine.bits,
            "reference": self.reference.planned.method,
            "reference_bits": self.reference.bits,
            "kind": self.kind,
            "metric": metric,
        }

    def values(self, metric: str) -> pd.DataFrame:
        """Values of both (`mine`, `theirs`), a row a context, and of mine under each seed."""
        columns = {
            "mine": self.mine.by_context(metric),
            "theirs": self.reference.by_context(metric),
        }
        columns |= {f"seed {i}": of for i, of in enumerate(self.mine.of_seeds(metric))}
        return pd.DataFrame(columns).rename_axis("context")


def comparison_rows(study: Study, groups: list[Measured]) -> pd.DataFrame:
    """Differences with interval, effect size, p and Holm's p, a row a task and length.

    What an experiment sets side by side is compared: every method with the full cache (`full`),
    ours with every baseline (`baseline`), and every variant of ours with ours (`ablation`).
    """
    rows = [
        {
            **pair.place(),
            **pair.named(metric),
            **_test(pair.values(metric), metric, study.seed),
            "headline": pair.headline,
            "all_kept": pair.mine.all_kept,
        }
        for pair in _pairs(study, groups)
        for metric in pair.metrics
    ]
    return _judged(rows, study)


def pooled_rows(study: Study, groups: list[Measured]) -> pd.DataFrame:
    """The same comparisons over all headline tasks and lengths of an experiment together.

    Contexts stay the clusters: each counts once, also one that several tasks share, as wait-k for
    several k does.
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
            **_test(_by_context([p.values(m) for p, m in places]), places[0][1], study.seed),
            "all_kept": all(pair.mine.all_kept for pair, _ in places),
        }
        for names, places in found.items()
    ]
    return _judged(rows, study)


def _pairs(study: Study, groups: list[Measured]) -> Iterator[Pair]:
    full = full_caches(groups)
    for experiment in study.experiments:
        name = experiment["name"]
        places: dict[tuple, dict[tuple[str, str], Measured]] = defaultdict(dict)
        for each in groups:
            if name in each.planned.experiments:
                *place, method, budget = each.planned.key
                places[tuple(place)][method, budget] = each
        for place, members in places.items():
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


def _test(values: pd.DataFrame, metric: str, seed: int) -> dict:
    difference = (values["mine"] - values["theirs"]).to_numpy()
    estimate = mean_interval(difference, seed, DIFFERENCE if METRICS[metric].share else None)
    seeds = [values[c].mean() - values["theirs"].mean() for c in values if c.startswith("seed")]
    return {
        "value": values["mine"].mean(),
        "reference_value": values["theirs"].mean(),
        "difference": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "seed_low": min(seeds, default=np.nan),
        "seed_high": max(seeds, default=np.nan),
        "effect": effect_size(difference),
        "p": paired_p(difference, seed),
        "n_contexts": estimate.n,
        "differences": difference,
    }


def _judged(rows: list[dict], study: Study) -> pd.DataFrame:
    """Correct p within the families that the config declares, and say what follows from it."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    # Pooled comparisons have no task and no length: a family of these is theirs alone as well.
    family = frame.groupby([name for name in study.config["families"] if name in frame])["p"]
    frame["family"] = family.transform("size").astype(int)
    frame["p_holm"] = family.transform(lambda p: holm(p.to_numpy()))
    records = frame.to_dict("records")
    frame["detectable"] = [detectable(row["differences"], row["family"]) for row in records]
    frame["verdict"] = [
        verdict(row["difference"], row["p_holm"], METRICS[row["metric"]].higher_is_better)
        for row in records
    ]
    return frame
