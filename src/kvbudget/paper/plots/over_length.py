"""Lines over the prompt's length, a column of panels a model: of quality, memory and speed."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbudget.paper.plots import style
from kvbudget.study.plan import Study


@dataclass(frozen=True)
class Measure:
    """A column of the frame and how its panel is labelled.

    With `bars` the frame has columns `{column}_low` and `{column}_high`, an interval; with `share`
    the axis is that of shares.
    """

    column: str
    label: str
    from_zero: bool = True
    reference: float | None = None
    bars: bool = False
    share: bool = False


def draw(study: Study, frame: pd.DataFrame, measures: list[Measure]) -> Figure | None:
    """One row a measure, one column a model.

    Args:
        frame: columns model, method, length, and one for each measure; one row a point.
    """
    measures = [m for m in measures if frame[m.column].notna().any()]
    models = [model for model in study.models if model in set(frame["model"])]
    if not measures or not models:
        return None
    width = style.COLUMN if len(models) == 1 else style.PAGE
    figure, axes = plt.subplots(
        len(measures),
        len(models),
        figsize=(width, 1.15 * len(measures) + 0.6),
        squeeze=False,
        sharex="col",
    )
    for row, measure in zip(axes, measures, strict=True):
        for ax, model in zip(row, models, strict=True):
            _panel(ax, study, frame[frame["model"] == model], measure)
    for ax, model in zip(axes[0], models, strict=True):
        ax.set_title(style.title(study, "models", model))
    for ax in axes[-1]:
        ax.set_xlabel("prompt (tokens)")
    for ax, measure in zip(axes[:, 0], measures, strict=True):
        ax.set_ylabel(measure.label)
    style.legend(figure, 2 if width == style.COLUMN else 4)
    return figure


def _panel(ax: Axes, study: Study, part: pd.DataFrame, measure: Measure) -> None:
    methods = [m for m in study.main_methods if m in set(part["method"])]
    for rank, method in enumerate(methods):
        look = style.look(study, method)
        mine = part[part["method"] == method].sort_values("length")
        # Methods that lie on one line: open markers of falling size show them all.
        ax.plot(
            mine["length"],
            mine[measure.column],
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            markersize=7 - 4 * rank / len(methods),
            markerfacecolor="none",
            label=style.title(study, "methods", method),
        )
        if measure.bars:
            ends = mine[f"{measure.column}_low"], mine[f"{measure.column}_high"]
            ax.vlines(mine["length"], *ends, color=look.colour, linewidth=0.6)
    if measure.reference is not None:
        ax.axhline(measure.reference, color="black", linestyle="--", linewidth=0.8)
    if measure.share:
        ax.set_ylim(-0.05, 1.05)
    elif measure.from_zero:
        style.from_zero(ax, part[measure.column])
    lengths = sorted(set(part["length"]))
    ax.set_xscale("log")
    ax.set_xticks(lengths, labels=[f"{length:,}" for length in lengths])
    ax.minorticks_off()
