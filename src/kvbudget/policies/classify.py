"""From what query heads do to classes of KV heads."""

import numpy as np

from kvbudget.errors import UserError

CLASSES = ("retrieval", "induction", "local")
REDUCTIONS = {"max": np.max, "mean": np.mean}


def to_kv_heads(scores: list[list[float]], kv_heads: int, reduction: str = "max") -> np.ndarray:
    """Scores of query heads `(layers, query_heads)` reduced to KV heads, `(layers, kv_heads)`.

    Consecutive query heads share a KV head (grouped-query attention, Ainslie et al., 2023).
    """
    if reduction not in REDUCTIONS:
        raise UserError(f"gqa must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    by_query_head = np.asarray(scores, dtype=float)
    grouped = by_query_head.reshape(len(by_query_head), kv_heads, -1)
    return REDUCTIONS[reduction](grouped, axis=-1)


def classify(
    heads: dict[str, list[list[float]]],
    kv_heads: int,
    thresholds: dict[str, float],
    reduction: str = "max",
) -> list[list[str]]:
    """Class of each KV head: retrieval, else induction, else local.

    A head is a retrieval (induction) head if its score reaches the threshold of that name;
    retrieval comes first, for it needs most of the context.
    """
    retrieval = to_kv_heads(heads["retrieval"], kv_heads, reduction) >= thresholds["retrieval"]
    induction = to_kv_heads(heads["induction"], kv_heads, reduction) >= thresholds["induction"]
    return np.where(retrieval, "retrieval", np.where(induction, "induction", "local")).tolist()
