"""Times of what takes turns, so that a machine whose speed drifts slows all alike."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvbudget.run.stopwatch import Stopwatch


@dataclass(frozen=True)
class Turn:
    """Something to be timed.

    Attributes:
        run: what is timed.
        before: what is done before each run and is not.
    """

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None


def interleaved(turns: Mapping[str, Turn], rounds: int) -> dict[str, float]:
    """Median seconds of each, in rounds of all; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            turn.before()
            watch = Stopwatch()
            turn.run()
            if number:
                seconds[name].append(watch.seconds())
    return {name: statistics.median(times) for name, times in seconds.items()}
