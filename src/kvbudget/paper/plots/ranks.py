"""How well predicted scores rank the tokens of heads, layer by layer and by what they are predicted
from."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kvbudget.paper.plots import style
from kvbudget.paper.source import Source

EMPTY = "no calibration"
#: Features → label, colour, marker.
LOOKS = {
    "group": ("keys and values of all heads of the layer", "#D55E00", "o"),
    "own": ("of the head alone", "#0072B2", "s"),
    "hidden": ("the hidden state", "#009E73", "^"),
}


def draw(src: Source) -> Figure | None:
    """A panel a model: a point for each KV head, a line through their mean."""
    ranks = src.table("ranks")
    models = list(dict.fromkeys(ranks["model"]))
    if not models:
        return None
    size = (style.COLUMN, 1.5 * len(models) + 0.3)
    figure, axes = plt.subplots(len(models), 1, figsize=size, squeeze=False, sharey=True)
    for ax, model in zip(axes.flat, models, strict=True):
        for features, (label, colour, marker) in LOOKS.items():
            part = ranks[(ranks["model"] == model) & (ranks["features"] == features)]
            if part.empty:  # of hidden states only where a study asks for them
                continue
            mean = part.groupby("layer")["correlation"].mean()
            ax.scatter(
                part["layer"], part["correlation"], s=5, color=colour, marker=marker, alpha=0.35,
                linewidths=0,
            )  # fmt: skip
            ax.plot(mean.index, mean, color=colour, marker=marker, markersize=2.5, label=label)
        ax.set_ylabel("rank correlation")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(models) > 1:
            ax.set_title(style.title(src.study, "models", model))
    ax.set_xlabel("layer")
    style.legend(figure, 2)
    return figure
