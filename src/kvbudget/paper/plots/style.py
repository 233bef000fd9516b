"""How all figures look: sizes for a two-column page, and one colour and marker a method."""

from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from kvbudget.study.plan import OURS, Study

COLUMN = 3.3  # inches
PAGE = 7.0
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
CLASSES = {"retrieval": "#D55E00", "induction": "#0072B2", "local": "#009E73"}
HEAT = "cividis"


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
            "pdf.fonttype": 42,
            "svg.hashsalt": "kvbudget",
        }
    )


def look(study: Study, method: str) -> tuple[str, str]:
    """(colour, marker) of a method: the same in every figure of every study."""
    if method == study.ours:
        return KNOWN[OURS]
    if method in KNOWN:
        return KNOWN[method]
    methods = study.config["methods"]
    others = sorted(m for m in methods if m not in KNOWN and study.policy(m) != OURS)
    return OTHERS[others.index(method) % len(OTHERS)] if method in others else ("#777777", "*")


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


def nothing(reason: str) -> Figure:
    """A figure that says why it is empty."""
    figure, ax = plt.subplots(figsize=(COLUMN, 0.8))
    ax.axis("off")
    ax.text(0.5, 0.5, f"no data in this study:\n{reason}", ha="center", va="center", fontsize=8)
    return figure
