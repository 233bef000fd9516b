"""orders.csv: whether methods stand in the orders that an experiment names, such as published ones.

Neighbours are compared where both are measured. The corrected test says of each pair whether the
order holds, whether its contrary does, or that these contexts cannot tell.
"""

from collections.abc import Iterator
from itertools import pairwise

import pandas as pd

from kvbudget.analysis.cell_rows import full_caches, is_headline
from kvbudget.analysis.measured import Measured, by_place
from kvbudget.analysis.paired import Pair, judged, tested
from kvbudget.study.plan import Study

#: All that an experiment's orders say in one metric is corrected together.
FAMILY = ("experiment", "metric")


def order_rows(study: Study, groups: list[Measured]) -> pd.DataFrame:
    """Each method minus the next of its order, a row a place, budget and metric."""
    rows = [
        {
            "order": number,
            **pair.place(),
            **pair.named(metric),
            **tested(pair.values(metric), metric, study.seed),
            "headline": pair.headline,
            "all_kept": pair.mine.all_kept,
        }
        for number, pair in _pairs(study, groups)
        for metric in pair.metrics
    ]
    return judged(rows, FAMILY)


def _pairs(study: Study, groups: list[Measured]) -> Iterator[tuple[int, Pair]]:
    """Neighbours, with the number of their order in its experiment."""
    full = full_caches(groups)
    for experiment in study.experiments:
        name = experiment["name"]
        places = by_place(groups, name)
        for number, order in enumerate(experiment.get("orders", []), 1):
            for place, members in places.items():
                headline = is_headline(full.get(place))
                for method, following in pairwise(order):
                    for (measured, budget), mine in members.items():
                        if measured == method and (following, budget) in members:
                            reference = members[following, budget]
                            yield number, Pair(name, "order", mine, reference, headline)
