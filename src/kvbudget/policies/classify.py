"""From what query heads do to classes of KV heads."""

import numpy as np

CLASSES = ("retrieval", "induction", "local")


def to_kv_heads(scores: list[list[float]], kv_heads: int) -> np.ndarray:
    """The highest score of the query heads of each KV head: `(layers, query_heads)` to
    `(layers, kv_heads)`.

    Consecutive query heads share a KV head (grouped-query attention, Ainslie et al., 2023).
    """
    by_query_head = np.asarray(scores, dtype=float)
    return by_query_head.reshape(len(by_query_head), kv_heads, -1).max(axis=-1)


def classify(
    heads: dict[str, list[list[float]]], kv_heads: int, thresholds: dict[str, float]
) -> list[list[str]]:
    """Class of each KV head: retrieval, else induction, else local.

    A head is a retrieval (induction) head if its score reaches the threshold of that name;
    retrieval comes first, for it needs most of the context.
    """
    retrieval = to_kv_heads(heads["retrieval"], kv_heads) >= thresholds["retrieval"]
    induction = to_kv_heads(heads["induction"], kv_heads) >= thresholds["induction"]
    return np.where(retrieval, "retrieval", np.where(induction, "induction", "local")).tolist()
