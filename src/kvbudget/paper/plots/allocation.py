"""Where budgets go: tokens kept by each KV head, over the mean of all."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from kvbudget.paper import budgets
from kvbudget.paper.plots import style
from kvbudget.paper.source import Source

EMPTY = "no head-aware cell that tells its allocation"
#: So many budgets of a single model.
PANELS = 3
#: Letters of the classes are shown where they fit into their fields.
LETTERED = (8, 40)  # KV heads, layers
#: The scale is cut here: what is a factor of eight off the mean is as dark as it gets.
FACTOR = 8


def draw(src: Source) -> Figure | None:
    """Up to three budgets of one model, or the smallest of each of several, at the length measured
    at most budgets, of the first task."""
    frame = src.table("allocation")
    frame = frame[frame["method"] == src.study.ours]
    models = list(dict.fromkeys(frame["model"]))
    most = PANELS if len(models) == 1 else 1
    panels = [
        (model, *place)
        for model in models
        for place in _places(frame[frame["model"] == model])[:most]
    ]
    if not panels:
        return None
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(style.COLUMN, 0.8 * len(panels) + 0.5), squeeze=False
    )
    for ax, (model, length, budget, part) in zip(axes[:, 0], panels, strict=True):
        _panel(ax, part)
        title = style.title(src.study, "models", model)
        named = budgets.text(budget, part["all_kept"].all())
        ax.set_title(f"{title}, {length:,} tokens, budget: {named}")
    axes[-1, 0].set_xlabel("layer")
    bar = figure.colorbar(
        axes[0, 0].collections[0], ax=list(axes[:, 0]), fraction=0.03, pad=0.02, aspect=25
    )
    bar.set_ticks([1 / FACTOR, 1 / 2, 1, 2, FACTOR], labels=["1/8", "1/2", "1", "2", "8"])
    bar.set_label("slots over mean")
    bar.minorticks_off()
    return figure


def _places(part: pd.DataFrame) -> list[tuple[int, str, pd.DataFrame]]:
    part = part[part["task"] == part["task"].iloc[0]]
    measured = part.groupby("length")["budget"].nunique()
    length = measured[measured == measured.max()].index.max()
    part = part[part["length"] == length]
    in_order = sorted(set(part["budget"]), key=budgets.order)
    return [(int(length), budget, part[part["budget"] == budget]) for budget in in_order]


def _panel(ax: Axes, part: pd.DataFrame) -> None:
    shares = part.pivot(index="kv_head", columns="layer", values="share")
    letters = part.pivot(index="kv_head", columns="layer", values="class").map(lambda c: c[:1])
    show = all(size <= most for size, most in zip(shares.shape, LETTERED, strict=True))
    sns.heatmap(
        shares.clip(1 / FACTOR, FACTOR),
        ax=ax,
        cmap=style.HEAT,
        norm=LogNorm(1 / FACTOR, FACTOR),
        annot=letters if show else False,
        fmt="",
        annot_kws={"fontsize": 7},
        cbar=False,
        xticklabels=max(1, round(shares.shape[1] / 10)),
    )
    ax.grid(False)
    ax.set_xlabel("")
    ax.set_ylabel("KV head")
    ax.tick_params(length=1.5, pad=1, rotation=0)
