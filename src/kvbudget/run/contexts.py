"""A context on its way into a cache: read as its method reads it, compressed, measured."""

from dataclasses import dataclass

from torch import Tensor

from kvbudget.cache.cache import BudgetedCache
from kvbudget.run import memory
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch


@dataclass(frozen=True)
class ReadContext:
    """A compressed context, and what it took.

    Attributes:
        cache: holds it.
        last: logits of its last token, `(vocab,)`.
        seconds: of reading and compressing.
        memory: bytes of the cache, and peaks of the process and the device.
        slots: tokens that each KV head of each full-attention layer keeps.
    """

    cache: BudgetedCache
    last: Tensor
    seconds: float
    memory: dict[str, int | None]
    slots: list[list[int]]


def read_context(runner: Runner, ids: list[int]) -> ReadContext:
    """Read the tokens of a context into an empty cache of the runner's method."""
    memory.mark_peak()
    cache = runner.cache(len(ids))
    watch = Stopwatch()
    for piece in runner.pieces(ids):
        last = runner.read(cache, piece)[-1]
    cache.plan.policy.finish(runner.model, runner.tokenizer, cache, ids)
    seconds = watch.seconds()
    # Measured here, as what follows holds snapshots that only the protocol needs.
    peaks = {
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "peak_cuda_bytes": memory.peak_cuda_bytes(),
    }
    slots = [[len(kept) for kept in layer.kept_positions()] for layer in cache.budgeted]
    return ReadContext(
        cache, last, seconds, {**runner.cache_bytes(cache, len(ids)), **peaks}, slots
    )
