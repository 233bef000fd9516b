"""Quality against the bytes of the budget, a panel for each model and metric.

Bytes are those planned, at which methods are equal: a cache of few bits takes less than its plan
where a run computes in float32.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbudget.paper import shown
from kvbudget.paper.plots import style
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL, Study

EMPTY = "no cell of a method that evicts"
PANELS_A_ROW = 4
LABELS = {"score": "score", "choice": "forced choice", "nll": "NLL (nats a token)"}
#: Points of a marker of the first method and of the last: those at one place are all seen.
SIZES = (7.0, 3.0)
#: Metrics that guessing among needles reaches in part, and that end at one.
OF_CHANCE = ("score", "choice")


def draw(src: Source) -> Figure | None:
    """One task (`kvbudget.paper.shown`), each model at the length measured at most budgets.

    All metrics are shown of one model, and of several the first: tables have the others.
    """
    frame = src.cells[src.cells["method"].isin(src.study.main_methods)]
    frame = frame[frame["task"] == shown.task(src)]
    models = list(dict.fromkeys(frame["model"]))
    metrics = [metric for metric in LABELS if metric in set(frame["metric"])]
    places = [
        (model, metric)
        for metric in metrics[: None if len(models) == 1 else 1]
        for model in models
        if not _part(frame, model, metric).empty
    ]
    if not places:
        return None
    across = columns(len(places))
    rows = -(-len(places) // across)
    width = style.COLUMN if across == 1 else style.PAGE
    figure, axes = plt.subplots(rows, across, figsize=(width, 1.55 * rows + 0.35), squeeze=False)
    for ax in axes.flat[len(places) :]:
        ax.remove()
    for number, (ax, (model, metric)) in enumerate(zip(axes.flat, places, strict=False)):
        _panel(ax, src.study, _part(frame, model, metric), (model, metric))
        if metric in OF_CHANCE:
            _draw_chance(ax, frame[frame["model"] == model])
        if number + across >= len(places):
            ax.set_xlabel("budget (MiB)")
    style.legend(figure, 4 if width == style.PAGE else 2)
    return figure


def columns(panels: int) -> int:
    """Panels a row, such that the last row lacks fewest: scores then often stand above NLLs."""
    wide = range(min(PANELS_A_ROW, panels), min(2, panels) - 1, -1)
    return min(wide, key=lambda across: -panels % across)


def _part(frame: pd.DataFrame, model: str, metric: str) -> pd.DataFrame:
    """Cells of one panel: the length with most budgets, the longest among equals."""
    part = frame[frame["model"] == model]
    planned = part[part["metric"] == "cache_bytes_planned"]
    planned = planned[["length", "method", "budget", "value"]]
    part = part[part["metric"] == metric]
    evicting = part[part["policy"] != FULL]
    if evicting.empty:
        return evicting
    budgets = evicting.groupby("length")["budget"].nunique()
    length = budgets[budgets == budgets.max()].index.max()
    return part[part["length"] == length].merge(
        planned.rename(columns={"value": "bytes"}), on=["length", "method", "budget"]
    )


def _panel(ax: Axes, study: Study, part: pd.DataFrame, place: tuple[str, str]) -> None:
    model, metric = place
    methods = [method for method in study.main_methods if method in set(part["method"])]
    for method, size in zip(methods, np.linspace(*SIZES, len(methods)), strict=True):
        mine = part[part["method"] == method].sort_values("bytes")
        look = style.look(study, method)
        title = style.title(study, "methods", method)
        if study.policy(method) == FULL:
            row = mine.iloc[0]
            level = {"color": look.colour, "linestyle": look.line, "linewidth": 0.8}
            ax.axhline(row["value"], label=title, **level)
            ax.axhspan(row["ci_low"], row["ci_high"], color=look.colour, alpha=0.08, linewidth=0)
            continue
        error = [
            (mine["value"] - mine["ci_low"]).clip(lower=0),
            (mine["ci_high"] - mine["value"]).clip(lower=0),
        ]
        ax.errorbar(
            mine["bytes"] / 2**20,
            mine["value"],
            yerr=error,
            color=look.colour,
            marker=look.marker,
            markersize=size,
            linestyle=look.line,
            elinewidth=0.6,
            alpha=0.9,
            label=title,
        )
        _mark_all_kept(ax, mine[mine["all_kept"]], look, size)
    tokens = int(part["length"].iloc[0])
    ax.set_title(f"{style.title(study, 'models', model)}\n{tokens:,} tokens")
    ax.set_ylabel(LABELS[metric])
    evicting = part[part["policy"] != FULL]
    ax.set_xlim(0, 1.08 * evicting["bytes"].max() / 2**20)
    if metric in OF_CHANCE:
        ax.set_ylim(-0.05, 1.05)
    else:
        style.from_zero(ax, part["value"])


def _draw_chance(ax: Axes, part: pd.DataFrame) -> None:
    """Dotted: what guessing among the context's needles reaches."""
    levels = part.loc[part["metric"] == "chance", "value"]
    if not levels.empty:
        ax.axhline(levels.mean(), color="#777777", linestyle=":", linewidth=1.0, label="chance")


def _mark_all_kept(ax: Axes, mine: pd.DataFrame, look: style.Look, size: float) -> None:
    """Points at which nothing is evicted are open, and the first of a panel says so."""
    places = mine["bytes"] / 2**20
    marks = {"color": look.colour, "marker": look.marker, "markersize": size, "linestyle": ""}
    ax.plot(places, mine["value"], markerfacecolor="white", zorder=3, **marks)
    for x, y in zip(places[: int(not ax.texts)], mine["value"], strict=False):
        ax.annotate(
            "all kept", (x, y), (0, -9), textcoords="offset points", ha="center", fontsize=7
        )
