"""What a sample says about quality, and what of it is compared."""

from collections.abc import Callable
from dataclasses import dataclass

#: What the full cache must score above chance, in the mean, for a place to count as headline.
HEADLINE_SCORE = 0.5


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a sample, averaged over the questions of a context.

    Attributes:
        of: reads it from a sample; None where the sample has none.
        share: whether it lies between 0 and 1.
        higher_is_better: which way is up.
        compared: whether methods are compared in it.
    """

    of: Callable[[dict], float | None]
    share: bool = True
    higher_is_better: bool = True
    compared: bool = True


def _given_any(sample: dict) -> float | None:
    return sample["score"] if sample.get("any") else None


def _choice(sample: dict) -> float | None:
    """Among one alternative there is no choice."""
    return sample.get("choice") if (sample.get("choices") or 0) > 1 else None


METRICS = {
    "score": Metric(of=lambda sample: sample["score"]),
    "nll": Metric(of=lambda sample: sample["nll"], share=False, higher_is_better=False),
    "any": Metric(of=lambda sample: sample.get("any"), compared=False),
    "given_any": Metric(of=_given_any, compared=False),
    "choice": Metric(of=_choice),
}
COMPARED = tuple(name for name, metric in METRICS.items() if metric.compared)


def chance(samples: list[dict]) -> float | None:
    """Mean chance of taking the right one of the context's needles; None where none is chosen."""
    chances = [1 / s["choices"] for s in samples if (s.get("choices") or 0) > 1]
    return sum(chances) / len(chances) if chances else None


def above_chance(score: float, chance: float | None) -> float:
    """A score with chance taken off: 0 for guessing, 1 for all right."""
    guessed = chance or 0.0
    return (score - guessed) / (1 - guessed)
