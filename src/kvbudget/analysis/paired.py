"""Two methods at one place, paired by context: their values, the test, and the verdict."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

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


def tested(values: pd.DataFrame, metric: str, seed: int) -> dict:
    """Difference with interval, effect size and p of `Pair.values` or means of them."""
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


def judged(rows: list[dict], families: Iterable[str]) -> pd.DataFrame:
    """Correct p within rows that agree in all of `families`, and say what follows from it."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    # Pooled comparisons have no task and no length: a family of these is theirs alone as well.
    family = frame.groupby([name for name in families if name in frame])["p"]
    frame["family"] = family.transform("size").astype(int)
    frame["p_holm"] = family.transform(lambda p: holm(p.to_numpy()))
    records = frame.to_dict("records")
    frame["detectable"] = [detectable(row["differences"], row["family"]) for row in records]
    frame["verdict"] = [
        verdict(row["difference"], row["p_holm"], METRICS[row["metric"]].higher_is_better)
        for row in records
    ]
    return frame
