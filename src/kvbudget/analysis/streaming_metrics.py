"""What a cell of translations says beside its likelihood: agreement, lagging and BLEU.

Of several seeds of a calibration, the first is read: translations are not averaged.
"""

from kvbudget.analysis.measured import Measured
from kvbudget.study.records import Cell
from kvbudget.tasks import latency

KIND = "streaming"


def by_context(each: Measured, full: Measured | None) -> dict[str, list[float]]:
    """Values of each metric over passages; a metric that nothing tells has none.

    Agreement is the share of tokens of the reference, each given all before it, in whose place
    the method would have written what the full cache would.
    """
    samples = each.cells[0].samples
    metrics = {
        name: [sample[name] for sample in samples if sample[name] is not None]
        for name in ("al", "laal")
    }
    if full is not None:
        metrics["agreement"] = [
            _share(sample["predictions"], same["predictions"])
            for sample, same in zip(samples, full.cells[0].samples, strict=True)
        ]
    return metrics


def bleu(cell: Cell) -> float:
    """BLEU of all passages together, 0 to 100."""
    outputs = [sample["output"] for sample in cell.samples]
    return latency.bleu(outputs, [sample["reference"][0] for sample in cell.samples])


def _share(these: list[int], those: list[int]) -> float:
    return sum(a == b for a, b in zip(these, those, strict=True)) / len(these)
