"""The bench as a figure: steps, bytes and peaks over the tokens of the context."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbudget.paper.bench import TITLES
from kvbudget.paper.plots import style

#: Panels: column, what its axis says, what it is divided by.
PANELS = (
    ("step_over_stock", "decode step\n(transformers = 1)", 1),
    ("allocated_bytes", "cache (MiB)", 2**20),
    ("peak_bytes", "peak of the process,\nread in pieces (MiB)", 2**20),
)
#: What is no method of a study has looks of its own.
LOOKS = {
    "alone": ("#777777", ""),
    "stock": ("#000000", "x"),
    "stock-pressed": ("#0072B2", "P"),
    "quanto-4bit": ("#CC79A7", "v"),
    "full-4bit": ("#009E73", "D"),
    "head-aware-4bit": ("#882255", ">"),
}


def write(found: Mapping[str, Any], path: Path) -> None:
    """Draw what was measured and write it as SVG; nothing if nothing was."""
    matplotlib.use("Agg")
    style.use()
    if figure := draw(pd.DataFrame(found["rows"])):
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def draw(rows: pd.DataFrame) -> Figure | None:
    """A row of panels for each dtype; of the panels, those that have data at two lengths."""
    panels = [
        panel
        for panel in PANELS
        if panel[0] in rows and rows.dropna(subset=[panel[0]])["tokens"].nunique() > 1
    ]
    dtypes = list(dict.fromkeys(rows["dtype"]))
    if not panels:
        return None
    size = (style.PAGE, 1.8 * len(dtypes) + 1.0)
    figure, axes = plt.subplots(len(dtypes), len(panels), figsize=size, squeeze=False)
    for line, dtype in zip(axes, dtypes, strict=True):
        for ax, panel in zip(line, panels, strict=True):
            _panel(ax, rows[rows["dtype"] == dtype], *panel)
        line[0].set_title(dtype, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel("context (tokens)")
    style.legend(figure, 2)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, column: str, label: str, unit: int) -> None:
    rows = rows.dropna(subset=[column])
    for name, title in TITLES.items():
        own = rows[rows["subject"] == name].sort_values("tokens")
        if own.empty:
            continue
        colour, marker = LOOKS.get(name) or style.KNOWN[name]
        line = {"color": colour, "marker": marker, "markerfacecolor": "none", "label": title}
        ax.plot(own["tokens"], own[column] / unit, **line)
    ax.set_ylabel(label)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted(set(rows["tokens"])))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
