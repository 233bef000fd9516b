"""What a study found about Head-Aware and its peers, budget by budget, as data for tables and
prose. All are over the headline tasks and lengths of one experiment together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from kvbudget.analysis.metrics import METRICS
from kvbudget.paper import budgets
from kvbudget.paper.source import Source

#: Budgets of one model that the main text tells one by one.
FEW = 3


@dataclass(frozen=True)
class Finding:
    """Ours at one budget, in one metric, beside its peers.

    Attributes:
        experiment: its name.
        model: its key.
        metric: `score`, `nll` or `choice`.
        budget: its token.
        all_kept: whether ours evicts nothing there.
        value: of ours, a mean over contexts.
        peers: comparisons with each baseline, the best baseline first.
    """

    experiment: str
    model: str
    metric: str
    budget: str
    all_kept: bool
    value: float
    peers: list[dict]

    @property
    def leads(self) -> bool:
        """Whether no peer is better."""
        best = self.peers[0]["reference_value"]
        higher = METRICS[self.metric].higher_is_better
        return self.value >= best if higher else self.value <= best

    def best_peers(self) -> list[dict]:
        """The best peer of each number of bits, sixteen first."""
        found: dict[str, dict] = {}
        for peer in self.peers:
            found.setdefault(peer["reference_bits"], peer)
        return [found[bits] for bits in sorted(found, key=_descending)]


def of_experiment(src: Source, experiment: str) -> Iterator[Finding]:
    """Findings of one experiment: by model, budget and metric."""
    frame = _pooled(src)
    frame = frame[frame["experiment"] == experiment]
    for model in dict.fromkeys(frame["model"]):
        of_model = frame[frame["model"] == model]
        for budget in sorted(set(of_model["budget"]), key=budgets.order):
            for metric in METRICS:
                part = of_model[(of_model["budget"] == budget) & (of_model["metric"] == metric)]
                if not part.empty:
                    yield _finding(part)


def first_metric(found: Iterable[Finding]) -> list[Finding]:
    """Findings in the score, or in the NLL where nothing is scored."""
    found = list(found)
    metric = next((m for m in METRICS if any(f.metric == m for f in found)), None)
    return [f for f in found if f.metric == metric]


def budgets_shown(frame: pd.DataFrame) -> list[str]:
    """Of pooled comparisons, the budgets that the main text sets side by side: all where one model
    is measured at few, or else the middle one. The appendix has all."""
    found = sorted(set(frame["budget"]), key=budgets.order)
    if frame["model"].nunique() == 1 and len(found) <= FEW:
        return found
    return found[(len(found) - 1) // 2 :][:1]


def main_experiment(src: Source) -> str | None:
    """The experiment that sets ours beside most peers, and of those the one that does so at most
    places; the first among equals."""
    frame = _pooled(src)
    return max(dict.fromkeys(frame["experiment"]), key=lambda e: _extent(frame, e), default=None)


def _extent(frame: pd.DataFrame, experiment: str) -> tuple[int, int]:
    """How many peers and places an experiment has."""
    part = frame[frame["experiment"] == experiment]
    return part["reference"].nunique(), int(part.groupby("model")["places"].max().sum())


def largest(frame: pd.DataFrame) -> str | None:
    """The experiment with most of some comparisons; the first among equals."""
    counts = frame.groupby("experiment", sort=False).size()
    return None if counts.empty else str(counts.idxmax())


def _pooled(src: Source) -> pd.DataFrame:
    frame = src.table("pooled")
    return frame[(frame["kind"] == "baseline") & (frame["method"] == src.study.ours)]


def _finding(part: pd.DataFrame) -> Finding:
    first = part.iloc[0]
    falling = METRICS[first["metric"]].higher_is_better
    best_first = part.sort_values("reference_value", ascending=not falling, kind="stable")
    names = ("experiment", "model", "metric", "budget")
    return Finding(
        **{name: first[name] for name in names},
        all_kept=bool(first["all_kept"]),
        value=float(first["value"]),
        peers=best_first.to_dict("records"),
    )


def _descending(bits: str) -> tuple[float, str]:
    return (-float(bits.split("/")[0]), bits)
