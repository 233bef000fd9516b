"""How often Head-Aware is clearly better and clearly worse than each peer, place by place, as data
for a table and prose."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from kvbudget.analysis.metrics import METRICS
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES


@dataclass(frozen=True)
class Tally:
    """Comparisons with one peer in one metric, over the places of one model where ours evicts,
    headline or not.

    Attributes:
        model: its key.
        reference: the peer's key.
        bits: those of the peer, as in `reference_bits`.
        metric: `score`, `nll` or `choice`.
        places: how many comparisons there are.
        better: in how many of them ours is clearly better.
        worse: in how many it is clearly worse.
        worst: by how much at most; 0 where it is so in none.
    """

    model: str
    reference: str
    bits: str
    metric: str
    places: int
    better: int
    worse: int
    worst: float


def against_peers(src: Source) -> pd.DataFrame:
    """Comparisons of ours with each baseline, place by place, where ours evicts.

    A pair that several experiments hold counts once: where ours is ahead as judged in the strictest
    of its families, where it is behind in the mildest, as a loss must not be missed.
    """
    frame = src.comparisons
    frame = frame[(frame["kind"] == "baseline") & (frame["method"] == src.study.ours)]
    frame = frame[~frame["all_kept"]]
    rising = frame["metric"].map(lambda name: METRICS[name].higher_is_better)
    ahead = (frame["difference"] > 0) == rising
    frame = frame.assign(order=frame["p_holm"].where(~ahead, -frame["p_holm"]))
    frame = frame.sort_values("order", kind="stable").drop(columns="order")
    return frame.drop_duplicates([*AXES, "reference", "metric"]).sort_index()


def tallies(compared: pd.DataFrame) -> Iterator[Tally]:
    """What `against_peers` found, by model, peer and metric."""
    by = ["model", "reference", "metric"]
    for key, part in compared.groupby(by, sort=False):
        lost = part.loc[part["verdict"] == "worse", "difference"].abs()
        model, reference, metric = map(str, key)
        yield Tally(
            model=model,
            reference=reference,
            bits=str(part["reference_bits"].iloc[0]),
            metric=metric,
            places=len(part),
            better=int((part["verdict"] == "better").sum()),
            worse=len(lost),
            worst=float(lost.max()) if len(lost) else 0.0,
        )
