"""Loss curves by class: what later queries lose when a KV head keeps only a share."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from kvbudget.paper.plots import style
from kvbudget.paper.source import Source

EMPTY = "no calibration"
MEASURES = ("output", "mass")  # measured for every rule


def draw(src: Source) -> Figure | None:
    """A panel for each model and rule: median over KV heads of a class, band from quartiles."""
    frame = src.table("loss_curves")
    measure = next((m for m in MEASURES if m in set(frame["measure"])), None)
    if measure is None:
        return None
    # Keeping nothing has no place on a logarithmic axis.
    frame = frame[(frame["measure"] == measure) & (frame["share"] > 0)]
    places = list(frame[["model", "rule"]].drop_duplicates().itertuples(index=False))
    models = frame["model"].nunique()
    columns = min(len(places), 2 if models == 1 else 4)
    rows = -(-len(places) // columns)
    width = style.COLUMN if models == 1 else style.PAGE
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, 1.35 * rows + 0.4), squeeze=False, sharey=True
    )
    for ax in axes.flat[len(places) :]:
        ax.remove()
    for number, (ax, (model, rule)) in enumerate(zip(axes.flat, places, strict=False)):
        part = frame[(frame["model"] == model) & (frame["rule"] == rule)]
        sns.lineplot(
            part,
            x="share",
            y="loss",
            hue="class",
            hue_order=[c for c in style.CLASSES if c in set(part["class"])],
            palette=style.CLASSES,
            style="class",
            estimator="median",
            errorbar=("pi", 50),
            ax=ax,
        )
        ax.get_legend().remove()
        ax.set_xscale("log")
        ax.set_title(rule if models == 1 else f"{style.title(src.study, 'models', model)}, {rule}")
        last = number + columns >= len(places)
        ax.set_xlabel("kept share" if last else "")
        ax.set_ylabel(f"lost {measure}" if number % columns == 0 else "")
        ax.set_ylim(bottom=0)
    style.legend(figure, 3)
    return figure
