"""Heat map of what heads do: retrieval, induction and local scores, layer by query head."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from kvbudget.paper.plots import style
from kvbudget.paper.source import Source

EMPTY = "no calibration"
SIGNALS = ("retrieval", "induction", "local")


def draw(src: Source) -> Figure | None:
    """One row a model, one column a signal; each panel has its own scale.

    Several models take less height each, over the whole page.
    """
    heads = src.table("heads")
    models = list(dict.fromkeys(heads["model"]))
    if not models:
        return None
    size = (style.COLUMN, 2.5) if len(models) == 1 else (style.PAGE, 1.9 * len(models))
    figure, axes = plt.subplots(len(models), len(SIGNALS), figsize=size, squeeze=False)
    for row, model in zip(axes, models, strict=True):
        part = heads[heads["model"] == model]
        for ax, signal in zip(row, SIGNALS, strict=True):
            sns.heatmap(
                part.pivot(index="layer", columns="query_head", values=signal),
                ax=ax,
                cmap=style.HEAT,
                vmin=0,
                cbar_kws={"orientation": "horizontal", "aspect": 12, "pad": 0.02},
                xticklabels=_every(part["query_head"].nunique(), 5),
                yticklabels=_every(part["layer"].nunique(), 10),
            )
            ax.grid(False)
            ax.set_title(signal)
            ax.set_xlabel("query head")
            ax.set_ylabel("")
            ax.tick_params(length=1.5, pad=1, rotation=0)
            ax.invert_yaxis()
            ax.collections[0].colorbar.ax.tick_params(length=1.5, pad=1, labelsize=7)
            ax.collections[0].colorbar.locator = plt.MaxNLocator(2)
            ax.collections[0].colorbar.update_ticks()
        row[0].set_ylabel(f"{style.title(src.study, 'models', model)}\nlayer")
    return figure


def _every(count: int, labels: int) -> int:
    """Label every how many ticks, for about so many labels."""
    return max(1, round(count / labels))
