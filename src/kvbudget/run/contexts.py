"""A context on its way into a cache: read as its method reads it, or adopted, and compressed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.prefill import Prefill, difference
from kvbudget.errors import UserError
from kvbudget.run import memory
from kvbudget.run.prefills import Shared
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch

_NO_PEAKS = {"peak_rss_bytes": None, "peak_cuda_bytes": None}


@dataclass(frozen=True)
class ReadContext:
    """A compressed context, and what it took.

    Attributes:
        cache: holds it.
        last: logits of its last token, `(vocab,)`.
        seconds: of reading and compressing; None where it was adopted.
        memory: bytes of the cache, and peaks of the process and the device, None where it was
            adopted or not read alone.
        slots: tokens that each KV head of each full-attention layer keeps.
    """

    cache: BudgetedCache
    last: Tensor
    seconds: float | None
    memory: dict[str, int | None]
    slots: list[list[int]]


def read_context(
    runner: Runner, ids: list[int], shared: Shared | None = None, *, alone: bool = True
) -> ReadContext:
    """Fill an empty cache of the runner's method with the tokens of a context.

    Args:
        runner: has the model and the method.
        ids: the tokens.
        shared: what was recorded of the context; None if nothing was.
        alone: whether no other context is held, so that peaks are this one's.

    Raises:
        UserError: what was read and what was recorded of it are not the same.
    """
    if shared is not None and not shared.own:
        return _adopted(runner, ids, shared.prefill)
    read = _read(runner, ids)
    if not alone:
        read = replace(read, memory=read.memory | _NO_PEAKS)
    if shared is not None:
        _compare(read, _adopted(runner, ids, shared.prefill), runner, shared.prefill)
    return read


def _read(runner: Runner, ids: list[int]) -> ReadContext:
    memory.mark_peak()
    cache = runner.cache(len(ids))
    watch = Stopwatch()
    for piece in runner.pieces(ids):
        last = runner.read(cache, piece)[-1]
    cache.finish(runner.model, runner.tokenizer, ids)
    seconds = watch.seconds()
    # Measured here, as what follows holds snapshots that only the protocol needs.
    peaks = {
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "peak_cuda_bytes": memory.peak_cuda_bytes(),
    }
    return ReadContext(
        cache, last, seconds, {**runner.cache_bytes(cache, len(ids)), **peaks}, _slots(cache)
    )


def _adopted(runner: Runner, ids: list[int], prefill: Prefill) -> ReadContext:
    cache = runner.cache(len(ids))
    last = prefill.adopt(cache, ids, runner.model.device)
    cache.finish(runner.model, runner.tokenizer, ids)
    held = runner.cache_bytes(cache, len(ids)) | _NO_PEAKS
    return ReadContext(cache, last, None, held, _slots(cache))


def _slots(cache: BudgetedCache) -> list[list[int]]:
    return [[len(kept) for kept in layer.kept_positions()] for layer in cache.budgeted]


def _compare(read: ReadContext, adopted: ReadContext, runner: Runner, prefill: Prefill) -> None:
    """See that all answers will be the same, as they follow from these."""
    found = difference(read.cache, adopted.cache)
    if found is None and not torch.equal(read.last, adopted.last):
        found = "the logits of the last token"
    if found is not None:
        raise UserError(
            f"method {runner.method['name']!r} that reads a context and the same method that "
            f"adopts {prefill.path} differ in {found}; set prefills: {{share: never}}, and "
            "please report it"
        )
