"""Where in a context needles stand: spread over it, in any text, at ends of sentences."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from kvbudget import sentences
from kvbudget.tasks import splits

#: Fractional part of the golden ratio: its multiples, modulo 1, fill an interval evenly however
#: many they are.
_GOLDEN = (5**0.5 - 1) / 2
#: How far from its depth a needle may stand for a better place: share of the text, and of the part
#: that a needle has to itself.
_REACH, _REACH_OF_PART = 0.1, 0.4


def spread(count: int, place: str, index: int) -> list[float]:
    """Depths of the needles of a context, in [0, 1): equal distances apart, in random order. Over
    contexts they come to stand everywhere, evenly.

    Args:
        count: needles of the context.
        place: what all contexts have in common that the draws depend on.
        index: number of the context.
    """
    first = (splits.draws(place, "depths").random() + index * _GOLDEN) % 1
    depths = [(part + first) / count for part in range(count)]
    splits.draws(place, index, "depths").shuffle(depths)
    return depths


def positions(passages: Sequence[str], depths: Sequence[float], end: int, last: int) -> list[int]:
    """Where needles go in the passages, joined by blanks: as near as there is a good place.

    The end of a sentence or of a passage is one; failing that the end of a clause, then of a word,
    then any letter. No two needles have the same place.

    Args:
        passages: of which the beginning is shown.
        depths: of each needle.
        end: letters that are shown.
        last: largest position that a needle may have, at most `end`.
    """
    text = " ".join(passages)[: last + 1]
    ends = accumulate((len(passage) + 1 for passage in passages), initial=0)
    good, *others = (sentences.ends(grade, text) for grade in sentences.GRADES)
    parted = {0, *good, *(max(0, each - 1) for each in ends)}
    grades = [_Free(places, last) for places in (parted, *others, range(last + 1))]
    reach = end * min(_REACH, _REACH_OF_PART / len(depths))
    return [_take(grades, min(depth * end, last), reach) for depth in depths]


class _Free:
    """Places that are not taken."""

    def __init__(self, places: Iterable[int], last: int) -> None:
        self.places = sorted(place for place in set(places) if place <= last)

    def nearest(self, wanted: float) -> int | None:
        """The nearest of them, if there is any left."""
        right = bisect_left(self.places, wanted)
        around = self.places[max(0, right - 1) : right + 1]
        return min(around, key=lambda place: abs(place - wanted), default=None)

    def take(self, place: int) -> None:
        """Nothing else can stand here."""
        if place in self.places:
            self.places.remove(place)


def _take(grades: Sequence[_Free], wanted: float, reach: float) -> int:
    """A place by the best grade that has one within reach; the last grade has every place."""
    found = [free.nearest(wanted) for free in grades]
    within = (each for each in found if each is not None and abs(each - wanted) <= reach)
    # Where the text is too short for as many needles, some stand side by side.
    place = next(within, found[-1] if found[-1] is not None else 0)
    for free in grades:
        free.take(place)
    return place
