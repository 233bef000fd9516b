"""comparisons.csv: head to head at equal bytes, paired by context."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pandas as pd

from kvbudget.analysis.records import FULL, OURS, Cell, Study
from kvbudget.analysis.statistics import holm, mean_interval, paired_p, verdict

HIGHER_IS_BETTER = {"score": True, "nll": False}
HEADLINE_SCORE = 0.5


def comparison_rows(study: Study, cells: list[Cell]) -> pd.DataFrame:
    """Differences with interval, p and Holm's p.

    Every method is set against the full cache (`full`), ours against every baseline (`baseline`),
    and every variant of ours against ours (`ablation`). Holm's correction runs within one kind
    and metric.
    """
    rows = [
        _compare(study, kind, cell, reference, metric, headline)
        for kind, cell, reference, headline in _pairs(study, cells)
        for metric in HIGHER_IS_BETTER
        if cell.by_context(metric)
    ]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame["p_holm"] = frame.groupby(["kind", "metric"])["p"].transform(lambda p: holm(p.to_numpy()))
    return frame


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
    return not scores or float(np.mean(scores)) >= HEADLINE_SCORE


def _compare(
    study: Study, kind: str, cell: Cell, reference: Cell, metric: str, headline: bool
) -> dict:
    ours, theirs = cell.by_context(metric), reference.by_context(metric)
    contexts = list(ours)
    a = np.array([ours[c] for c in contexts])
    b = np.array([theirs[c] for c in contexts])
    estimate = mean_interval(a - b, study.seed)
    p = cell.planned
    return {
        "model": p.model,
        "task": p.task,
        "length": p.length,
        "budget": p.budget,
        "method": p.method,
        "reference": reference.planned.method,
        "kind": kind,
        "metric": metric,
        "difference": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "p": paired_p(a, b, study.seed),
        "n_contexts": estimate.n,
        "headline": headline,
        "verdict": verdict(estimate, HIGHER_IS_BETTER[metric]),
    }
