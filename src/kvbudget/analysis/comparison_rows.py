"""comparisons.csv and pooled.csv: head to head at equal bytes, paired by context."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd

from kvbudget.analysis import schema
from kvbudget.analysis.statistics import (
    detectable,
    effect_size,
    holm,
    mean_interval,
    paired_p,
    verdict,
)
from kvbudget.study.plan import FULL, OURS, Study
from kvbudget.study.records import Cell

HIGHER_IS_BETTER = {"score": True, "nll": False}


def comparison_rows(study: Study, cells: list[Cell]) -> pd.DataFrame:
    """Differences with interval, effect size, p and Holm's p, a row a task and length.

    Every method is set against the full cache (`full`), ours against every baseline (`baseline`),
    and every variant of ours against ours (`ablation`). Holm's correction runs within one kind
    and metric.
    """
    rows = []
    for kind, cell, reference, headline in _pairs(study, cells):
        p = cell.planned
        place = {"model": p.model, "task": p.task, "length": p.length}
        for metric in HIGHER_IS_BETTER:
            if cell.by_context(metric):
                pair = _named(kind, cell, reference, metric)
                test = _test(_paired(cell, reference, metric), metric, study.seed)
                rows.append({**place, **pair, **test, "headline": headline})
    return _corrected(rows)


def pooled_rows(study: Study, cells: list[Cell]) -> pd.DataFrame:
    """The same comparisons over all headline tasks and lengths of a model and budget together.

    Contexts stay the clusters: each counts once, also one that several tasks share, as wait-k for
    several k does.
    """
    groups: dict[tuple, list[pd.DataFrame]] = defaultdict(list)
    for kind, cell, reference, headline in _pairs(study, cells):
        for metric in HIGHER_IS_BETTER:
            if headline and cell.by_context(metric):
                pair = _named(kind, cell, reference, metric)
                names = (("model", cell.planned.model), *pair.items())
                groups[names].append(_paired(cell, reference, metric))
    return _corrected(
        [
            {
                **dict(names),
                "places": len(places),
                **_test(_by_context(places), dict(names)["metric"], study.seed),
            }
            for names, places in groups.items()
        ]
    )


def _pairs(study: Study, cells: list[Cell]) -> Iterator[tuple[str, Cell, Cell, bool]]:
    groups: dict[tuple, dict[tuple[str, str], Cell]] = defaultdict(dict)
    for cell in cells:
        p = cell.planned
        groups[p.model, p.task, p.length][p.method, p.budget] = cell
    for group in groups.values():
        full = next((c for c in group.values() if c.planned.policy == FULL), None)
        headline = _headline(full)
        for (method, budget), cell in group.items():
            if cell.planned.policy == FULL:
                continue
            if full:
                yield "full", cell, full, headline
            if method == study.ours:
                for baseline in study.baselines:
                    if (baseline, budget) in group:
                        yield "baseline", cell, group[baseline, budget], headline
            elif cell.planned.policy == OURS and (study.ours, budget) in group:
                yield "ablation", cell, group[study.ours, budget], headline


def _headline(full: Cell | None) -> bool:
    if full is None:
        return False
    scores = list(full.by_context("score").values())
    return not scores or float(np.mean(scores)) >= schema.HEADLINE_SCORE


def _named(kind: str, cell: Cell, reference: Cell, metric: str) -> dict:
    return {
        "budget": cell.planned.budget,
        "method": cell.planned.method,
        "reference": reference.planned.method,
        "kind": kind,
        "metric": metric,
    }


def _paired(cell: Cell, reference: Cell, metric: str) -> pd.DataFrame:
    """Values of both (`ours`, `theirs`), a row a context."""
    pair = {"ours": cell.by_context(metric), "theirs": reference.by_context(metric)}
    return pd.DataFrame(pair).rename_axis("context")


def _by_context(places: list[pd.DataFrame]) -> pd.DataFrame:
    """Means of both over the places that a context stands in."""
    return pd.concat(places).groupby("context", sort=False).mean()


def _test(pairs: pd.DataFrame, metric: str, seed: int) -> dict:
    a, b = pairs["ours"].to_numpy(), pairs["theirs"].to_numpy()
    estimate = mean_interval(a - b, seed)
    return {
        "difference": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "effect": effect_size(a - b),
        "p": paired_p(a, b, seed),
        "n_contexts": estimate.n,
        "detectable": detectable(a - b),
        "verdict": verdict(estimate, HIGHER_IS_BETTER[metric]),
    }


def _corrected(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    if not frame.empty:
        families = frame.groupby(["kind", "metric"])["p"]
        frame["p_holm"] = families.transform(lambda p: holm(p.to_numpy()))
    return frame
