"""Where the time of a decode step goes: its parts, on a CPU.

Timers are put around the parts of the model and of the cache, and a part counts without the parts
in it. On a GPU they would see how long work takes to launch, not to do.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kvbudget.cache import layer
from kvbudget.cache.eviction import Store
from kvbudget.run.bench.decode import step
from kvbudget.run.bench.fill import fill
from kvbudget.run.bench.subjects import STOCK, ours, stock

ROUNDS = 20
_REST = "rest"
#: Of modules by what their names contain; the first that fits.
_MODULES = {
    "mlp": "feed-forward",
    "_proj": "projections of attention",
    "norm": "norms",
    "lm_head": "logits",
    "self_attn": "attention",
}
#: Of the cache, by where they are found.
_CALLS = (
    (DynamicLayer, "update", "cache: copying all tokens"),
    (layer.BudgetedLayer, "_arrive", "cache: scoring the new token"),
    (Store, "append_one", "cache: storing it"),
    (layer, "attend_slots", "cache: attention"),
    (Store, "evict", "cache: eviction"),
    (layer.BudgetedLayer, "attend", "cache: rest"),
)


def measure(model: PreTrainedModel, tokens: int, names: tuple[str, ...]) -> list[dict]:
    """Median milliseconds of each part of a step after `tokens` tokens, of transformers' full cache
    and of some of our methods."""
    caches = {STOCK: stock(model)} | {name: ours(model, name) for name in names}
    fill(model, [(cache, tokens) for cache in caches.values()])
    rows = []
    for name, cache in caches.items():
        turn, clock, rounds = step(model, cache), Clock(), []
        with _watched(model, clock):
            for _ in range(ROUNDS + 1):
                turn.before()
                clock.seconds.clear()
                clock.timed(_REST, turn.run)()
                rounds.append(dict(clock.seconds))
        for part in rounds[-1]:
            median = statistics.median(each.get(part, 0.0) for each in rounds[1:])
            rows.append({"tokens": tokens, "subject": name, "part": part, "ms": 1000 * median})
    return rows


class Clock:
    """Seconds of parts, each without the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [0.0]  # seconds of the parts in each part that runs

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts as a part's."""

        def run(*args, **kwargs) -> Any:
            self._within.append(0.0)
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = perf_counter() - start
                self.seconds[part] += spent - self._within.pop()
                self._within[-1] += spent

        return run


@contextmanager
def _watched(model: PreTrainedModel, clock: Clock) -> Iterator[None]:
    """While the parts of a model and of the cache are timed."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if part := _of_module(name, _MODULES):
                stack.enter_context(_timed(clock, part, module, "forward"))
        for owner, name, part in _CALLS:
            stack.enter_context(_timed(clock, part, owner, name))
        yield


def _of_module(name: str, parts: Mapping[str, str]) -> str | None:
    return next((part for word, part in parts.items() if word in name), None)


@contextmanager
def _timed(clock: Clock, part: str, owner: Any, name: str) -> Iterator[None]:
    own, function = name in vars(owner), getattr(owner, name)
    setattr(owner, name, clock.timed(part, function))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, function)
        else:  # of the class of a module
            delattr(owner, name)
