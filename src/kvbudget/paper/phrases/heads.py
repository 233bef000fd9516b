"""What the calibration found about the heads."""

from collections.abc import Iterator

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.source import Source


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """How many heads are of each class, and how far two halves of the calibration agree."""
    yield "summary/classes", _classes(src)
    yield "summary/stability", _stability(src)


def _classes(src: Source) -> Latex:
    heads = src.table("heads").drop_duplicates(["model", "layer", "kv_head"])
    if heads.empty:
        return Latex("This study holds no calibration.")
    texts = []
    for model, group in heads.groupby("model", sort=False):
        counts = group["class"].value_counts().sort_index()
        listed = latex.listing(f"{number} {name}" for name, number in counts.items())
        title = latex.title(src.study, "models", model)
        texts.append(f"{title} has {len(group)} KV heads. Its calibration calls {listed} heads.")
    return Latex(" ".join(texts))


def _stability(src: Source) -> Latex:
    """How well two halves of the calibration agree, on signals that decide something."""
    texts = []
    for model, group in src.table("stability").groupby("model", sort=False):
        listed = latex.listing(
            f"{signal} {value:.2f}"
            for signal, value in zip(group["signal"], group["correlation"], strict=True)
            if signal in ("retrieval", "induction") or signal.startswith("answer")
        )
        texts.append(f"{latex.title(src.study, 'models', model)}: {listed}.")
    if not texts:
        return Latex("The calibration is too small to be halved.")
    return Latex(
        "Rank correlations over heads between two disjoint halves of it: " + " ".join(texts)
    )
