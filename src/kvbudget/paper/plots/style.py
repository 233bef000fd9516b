"""How all figures look and are written: sizes for a two-column page, one line a method."""

import textwrap
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbudget.paper.plots import mathtext
from kvbudget.paper.source import Source
from kvbudget.study.plan import OURS, Study

COLUMN = 3.3  # inches
PAGE = 7.0
#: Characters to a line of a title: two legend entries, or one panel of four, stand side by side.
LINE = 30
#: No panel is flatter than this, in inches, however many lines stand above it: curves, heat maps.
FLATTEST = (0.8, 0.3)
#: How far above the highest value of a panel an interval may reach before it is cut.
HIGHEST = 1.4
#: Okabe and Ito's palette, which colour-blind readers can tell apart.
KNOWN = {
    "full": ("#000000", "X"),
    "h2o": ("#E69F00", "s"),
    "streaming-llm": ("#56B4E9", "^"),
    "head-aware": ("#D55E00", "o"),
}
OTHERS = (
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#0072B2", "P"),
    ("#999933", "<"),
    ("#882255", ">"),
    ("#44AA99", "p"),
    ("#332288", "h"),
    ("#AA4499", "d"),
    ("#661100", "H"),
)
#: So that lines can be told apart in grey: ours is solid, the others have these in turn.
LINES = ("-", (0, (4, 1)), "-.", (0, (1, 0.7)))
KNOWN_LINES = {"full": LINES[1], "h2o": LINES[3], "streaming-llm": LINES[2]}
#: By how many places markers move on then: none comes near one that its colour had.
_NEXT = 4
CLASSES = {"retrieval": "#D55E00", "induction": "#0072B2", "local": "#009E73"}
HEAT = "cividis"
#: Without dates, so that the same CSV files give the same bytes.
METADATA = {"CreationDate": None, "ModDate": None}


def use() -> None:
    """Set matplotlib's defaults for the paper."""
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "font.family": "STIXGeneral",
            "mathtext.fontset": "stix",
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.linewidth": 0.3,
            "grid.color": "#cccccc",
            "lines.linewidth": 1.0,
            "lines.markersize": 4,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.w_pad": 0.06,
            "pdf.fonttype": 42,
            "svg.hashsalt": "kvbudget",
        }
    )


def save(module: ModuleType, src: Source, out: Path) -> None:
    """Draw the figure of a module and write it as PDF; one without data says so in words."""
    matplotlib.use("Agg")  # a job has no display
    use()
    figure = module.draw(src) or nothing(module.EMPTY)
    _give_room(figure)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata=METADATA)
    plt.close(figure)


def _give_room(figure: Figure) -> None:
    """Make a figure taller where a legend or titles of many lines would squeeze its panels."""
    width, height = figure.get_size_inches()
    renderer = figure.canvas.get_renderer()
    legends = sum(each.get_window_extent(renderer).height for each in figure.legends) / figure.dpi
    if 2 * legends > height:  # the layout gives up where panels have no room at all
        figure.set_size_inches(width, height + legends)
    for _ in range(3):  # as a taller figure is laid out anew
        figure.draw_without_rendering()
        width, height = figure.get_size_inches()
        panels = [(ax, ax.get_position()) for ax in figure.axes if ax.axison]
        lacking = max(
            (FLATTEST[not ax.lines] - place.height * height for ax, place in panels), default=0
        )
        if lacking <= 0.01:
            return
        rows = len({round(place.y0, 2) for _, place in panels})
        figure.set_size_inches(width, height + rows * lacking)


def title(study: Study, section: str, key: str) -> str:
    """Name in print of a model, task or method, in lines that fit."""
    return mathtext.typeset(study.title(section, key), LINE)


class Look(NamedTuple):
    """How a method is drawn: matplotlib's colour, marker and line style."""

    colour: str
    marker: str
    line: str | tuple = "-"


def look(study: Study, method: str) -> Look:
    """The look of a method of a study: the same in all of its figures, and no other's."""
    if method == study.ours:
        return Look(*KNOWN[OURS])
    if method in KNOWN and method != OURS:
        return Look(*KNOWN[method], KNOWN_LINES[method])
    return _looks(study)[method]


def _looks(study: Study) -> dict[str, Look]:
    """Looks of the methods that have none of their own, those of others before variants of ours."""
    rest = [m for m in study.methods if m != study.ours and (m == OURS or m not in KNOWN)]
    looks = {}
    for number, method in enumerate(sorted(rest, key=lambda m: (study.policy(m) == OURS, m))):
        again, place = divmod(number, len(OTHERS))
        marker = OTHERS[(place + _NEXT * again) % len(OTHERS)][1]
        looks[method] = Look(OTHERS[place][0], marker, LINES[(number + 1) % len(LINES)])
    return looks


def legend(figure: Figure, columns: int) -> None:
    """One legend for all panels, above them and outside of the data."""
    handles: dict[str, Artist] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = list(handles)
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside upper center",
        ncols=min(columns, len(labels)),
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.0,
    )


def from_zero(ax: Axes, values: pd.Series) -> None:
    """Let an axis begin at zero and hold all values. Intervals that lie far above them are cut."""
    if values.max() > 0:
        ax.set_ylim(0, min(ax.get_ylim()[1] * 1.05, values.max() * HIGHEST))


def nothing(reason: str) -> Figure:
    """A figure that says why it is empty."""
    figure, ax = plt.subplots(figsize=(COLUMN, 0.8))
    ax.axis("off")
    said = "\n".join(textwrap.wrap(f"no data in this study: {reason}", 50))
    ax.text(0.5, 0.5, said, ha="center", va="center", fontsize=8)
    return figure
