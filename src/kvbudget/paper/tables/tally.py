"""Ours against each peer, place by place: how often it is clearly better and clearly worse."""

from collections.abc import Iterator

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.phrases.words import METRIC_TITLE
from kvbudget.paper.source import Source
from kvbudget.paper.tally import Tally, against_peers, tallies
from kvbudget.paper.template import render

#: What stands under each metric.
HEADS = ("of", "better", "worse", "by up to")
CAPTION = (
    "{ours} against each peer, place by place, where it evicts: of how many places (model, task, "
    "length and budget; headline or not) it is clearly better and clearly worse, and by how much "
    "at most where it is worse, by a paired permutation test after Holm's correction. A pair that "
    "several experiments hold counts once: a win where the strictest of their corrections shows "
    "it, a loss where the mildest does."
)


def text(src: Source) -> str:
    """LaTeX of as many floats as the rows need; a sentence where there is no comparison."""
    found = list(tallies(against_peers(src)))
    metrics = [name for name in METRIC_TITLE if any(each.metric == name for each in found)]
    ours = latex.title(src.study, "methods", src.study.ours) if src.study.ours else ""
    floats = [
        {
            "rows": piece,
            "caption": Latex(CAPTION.format(ours=ours) + (" (Continued.)" if number else "")),
            "label": f"tab:tally-{number + 1}",
        }
        for number, piece in enumerate(layout.by_height(list(_rows(src, found, metrics))))
    ]
    titles = [Latex(METRIC_TITLE[name]) for name in metrics]
    return render("tally.tex.j2", notes=src.notes(), floats=floats, metrics=titles, heads=HEADS)


def _rows(src: Source, found: list[Tally], metrics: list[str]) -> Iterator[Row]:
    """A row for each model and peer."""
    at = {(each.model, each.reference, each.metric): each for each in found}
    for model in src.study.models:
        for reference in dict.fromkeys(each.reference for each in found if each.model == model):
            tallied = [at.get((model, reference, metric)) for metric in metrics]
            bits = next(each.bits for each in tallied if each)
            cells = [layout.named(src.study, "methods", reference), latex.escape(bits)]
            for each in tallied:
                cells += _cells(each)
            yield Row(latex.title(src.study, "models", model), cells)


def _cells(tally: Tally | None) -> list[Latex]:
    if tally is None:
        return [Latex(latex.DASH)] * len(HEADS)
    worst = latex.decimal(tally.worst) if tally.worse else latex.DASH
    return [*(Latex(str(n)) for n in (tally.places, tally.better, tally.worse)), Latex(worst)]
