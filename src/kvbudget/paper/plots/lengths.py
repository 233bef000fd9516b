"""Score and NLL over the length of the prompt at one budget, a column of panels a model."""

import pandas as pd
from matplotlib.figure import Figure

from kvbudget.paper import shown
from kvbudget.paper.plots import over_length
from kvbudget.paper.plots.over_length import Measure
from kvbudget.paper.source import Source

EMPTY = "one task at one budget and two lengths"
MEASURES = {
    "score": Measure("score", "score", bars=True, share=True),
    "nll": Measure("nll", "NLL (nats a token)", bars=True),
}


def draw(src: Source) -> Figure | None:
    """One task and one budget (`kvbudget.paper.shown`), for the models with two lengths or more."""
    frame = shown.over_lengths(src)
    frame = frame[frame["metric"].isin(MEASURES)]
    if frame.empty:
        return None
    wide = _wide(frame)
    return over_length.draw(src.study, wide, [MEASURES[m] for m in MEASURES if m in wide])


def _wide(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a model, method and length; columns `{metric}`, `{metric}_low` and `{metric}_high`."""
    values = {"value": "", "ci_low": "_low", "ci_high": "_high"}
    wide = frame.pivot(index=["model", "method", "length"], columns="metric", values=list(values))
    wide.columns = [f"{metric}{values[name]}" for name, metric in wide.columns]
    return wide.reset_index()
