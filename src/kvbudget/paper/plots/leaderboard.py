"""Score over compression, as leaderboards show it: a panel for each model, task and length.

Compression is the share of the context's tokens that a KV head evicts in the mean, whatever their
bits. Where caches of others are measured, which may mask what they evict and hold it, panels below
have the share of the full cache's bytes that is saved; what saves none stands at 0. The axis is
logarithmic in what is left, so that 90% and 95% are as far apart as 80% and 90%.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from kvbudget.paper import shown
from kvbudget.paper.plots import style
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES, FULL, Study

EMPTY = "no scored cell of a method that evicts"
PLACE = list(AXES[:3])
PANELS_A_ROW = 4
#: What is left → what is said of the rest.
LABELS = {"kept": "tokens evicted", "held": "bytes saved"}
TICKS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
#: What of a method's entry makes it no variant.
_NO_CHOICE = ("title", "bits", "value_bits")
#: Panels that fit on a page.
MOST = 12


def draw(src: Source) -> Figure | None:
    """Places with several budgets, if there are any, else all; four to a row or less.

    Where they do not fit on a page, those of one task (`kvbudget.paper.shown`).
    """
    frame = _points(src)
    budgets = frame[frame["policy"] != FULL].groupby(PLACE, sort=False)["budget"].nunique()
    places = list(budgets[budgets > 1].index) or list(budgets.index)
    if len(places) > MOST:
        places = [place for place in places if place[1] == shown.task(src)][:MOST]
    if not places:
        return None
    axes_shown = [name for name in LABELS if frame[name].notna().any()]
    across = min(len(places), PANELS_A_ROW)
    pieces = [places[start : start + across] for start in range(0, len(places), across)]
    rows = [(name, piece) for piece in pieces for name in axes_shown]
    width = style.COLUMN if across == 1 else style.PAGE
    size = (width, 2.2 * len(rows) + 0.35)
    figure, axes = plt.subplots(len(rows), across, figsize=size, squeeze=False, sharey=True)
    for line, (name, piece) in zip(axes, rows, strict=True):
        for ax in line[len(piece) :]:
            ax.remove()
        for ax, place in zip(line, piece, strict=False):
            _panel(ax, src.study, frame[_at(frame, place)], name)
            ax.set_xlabel(LABELS[name])
            if name == axes_shown[0]:
                ax.set_title(_title(src.study, place))
        line[0].set_ylabel("score")
    style.legend(figure, 4 if width == style.PAGE else 2)
    return figure


def _methods(study: Study) -> list[str]:
    """The main methods, and ours in other numbers of bits."""

    def choices(method: str | None) -> dict:
        entry = study.config["methods"][method] if method else {}
        return {key: value for key, value in entry.items() if key not in _NO_CHOICE}

    shown, ours = set(study.main_methods), choices(study.ours)
    return [m for m in study.methods if m in shown or choices(m) == ours]


def _points(src: Source) -> pd.DataFrame:
    """Scores with intervals, and the shares of tokens and bytes that are left, a row a method at a
    place and a budget."""
    cells = src.cells[src.cells["method"].isin(_methods(src.study))]
    scores = cells[cells["metric"] == "score"]
    sizes = cells.pivot(index=list(AXES), columns="metric", values="value")
    held = sizes["cache_bytes_allocated"] / sizes["cache_bytes_full"]
    if "cache_bytes_claimed" not in sizes:
        held[:] = float("nan")
    found = pd.DataFrame({"kept": sizes["kept"], "held": held.clip(upper=1)})
    return scores.join(found, on=list(AXES))


def _at(frame: pd.DataFrame, place: tuple) -> pd.Series:
    return (frame[PLACE] == pd.Series(place, index=PLACE)).all(axis=1)


def _panel(ax: Axes, study: Study, part: pd.DataFrame, left: str) -> None:
    for method in _methods(study):
        mine = part[part["method"] == method].sort_values(left)
        look = style.look(study, method)
        if mine.empty:
            continue
        title = style.title(study, "methods", method)
        if study.policy(method) == FULL:
            score = mine["value"].iloc[0]
            line = {"color": look.colour, "linestyle": look.line, "linewidth": 0.8}
            ax.axhline(score, label=title, **line)
            continue
        error = [
            (mine["value"] - mine["ci_low"]).clip(lower=0),
            (mine["ci_high"] - mine["value"]).clip(lower=0),
        ]
        ax.errorbar(
            mine[left],
            mine["value"],
            yerr=error,
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            markersize=3,
            elinewidth=0.4,
            alpha=0.9,
            label=title,
        )
    ax.set_xscale("log")
    ax.set_xlim(1.1, part.loc[part["policy"] != FULL, left].min() / 1.1)
    ax.set_ylim(-0.05, 1.05)
    ax.xaxis.set_major_locator(FixedLocator(TICKS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda share, _: f"{1 - share:.0%}")


def _title(study: Study, place: tuple[str, str, int]) -> str:
    model, task, length = place
    names = style.title(study, "models", model), style.title(study, "tasks", task)
    return "\n".join([*names, f"{length:,} tokens"])
