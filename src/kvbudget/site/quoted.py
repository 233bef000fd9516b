"""Numbers of published studies in prose: a template asks for each by its place, and what it says of
two methods holds by the corrected test, or there is no text."""

from collections.abc import Sequence
from functools import partialmethod
from pathlib import Path

import jinja2
import pandas as pd

from kvbudget.errors import UserError
from kvbudget.paper.phrases import words
from kvbudget.site.markdown import METRICS, in_short, tables_of
from kvbudget.study.plan import FULL, Study, budget_token


def fill(template: Path, root: Path) -> str:
    """The text of a template, in which `study("small")` is that published study as `Quoted`, and
    `in_short("small", "tasks")` a table of one of its experiments.

    Raises:
        UserError: it asks for what is not published, or says what does not hold.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.globals["study"] = lambda name: Quoted(*tables_of(name, root))
    environment.globals["in_short"] = lambda name, experiment: in_short(name, experiment, root)
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render().strip()
    except UserError as error:
        raise UserError(f"{template.name}: {error}") from None


class Quoted:
    """A published study of which numbers are quoted.

    A model is named by how its key begins, a budget as in a config (`5%`, 2048). The task is the
    study's first unless another is named, and the method ours. Numbers have no leading zero.
    """

    def __init__(self, study: Study, tables: dict[str, pd.DataFrame]) -> None:
        self._study = study
        self._tables = tables

    def score(self, model: str, length: int, budget: str | int, method: str = "", **at: str) -> str:
        """Mean score of a method at a place."""
        return _decimal(self._cell("score", model, length, budget, method, **at)["value"], "score")

    def nll(self, model: str, length: int, budget: str | int, method: str = "", **at: str) -> str:
        """Mean NLL of a method at a place."""
        return _decimal(self._cell("nll", model, length, budget, method, **at)["value"], "nll")

    def both(self, model: str, length: int, budget: str | int, method: str = "", **at: str) -> str:
        """Score and NLL."""
        where = (model, length, budget, method)
        return f"{self.score(*where, **at)} / {self.nll(*where, **at)}"

    def scores(
        self, model: str, lengths: Sequence[int], budget: str | int, method: str = "", **at: str
    ) -> str:
        """Scores at several lengths."""
        return ", ".join(self.score(model, length, budget, method, **at) for length in lengths)

    def seeds(
        self, model: str, length: int, budget: str | int, method: str, metric: str = "score"
    ) -> str:
        """The least and the largest mean of calibrations that differ in their seed."""
        row = self._cell(metric, model, length, budget, method)
        ends = (_decimal(row[end], metric) for end in ("seed_low", "seed_high"))
        return " to ".join(dict.fromkeys(ends))  # one number where both print alike

    def clear(self, verdict: str, peers: Sequence[str] = (), metric: str = "score") -> str:
        """In how many comparisons with these peers, or all, ours is `better` or `worse`, all
        headline places of an experiment together: `13 of 18`."""
        frame = self._tables["pooled"]
        frame = frame[(frame["method"] == self._study.ours) & (frame["kind"] == "baseline")]
        if unknown := set(peers).difference(frame["reference"]):
            raise UserError(f"there is no comparison with {', '.join(sorted(unknown))}")
        frame = frame[frame["reference"].isin(peers or self._study.baselines)]
        frame = frame[(frame["metric"] == metric) & ~frame["all_kept"]]
        return f"{(frame['verdict'] == verdict).sum()} of {len(frame)}"

    @property
    def told(self) -> str:
        """How many of the planned cells are told."""
        told = len(self._study.cells)
        return f"{told} of {told + self._study.left_out}"

    def _cell(
        self, metric: str, model: str, length: int, budget: str | int, method: str, task: str = ""
    ) -> pd.Series:
        method = method or str(self._study.ours)
        full = self._study.policy(method) == FULL
        where = {
            "model": self._model(model),
            "task": task or self._task,
            "length": length,
            "budget": FULL if full else budget_token(budget),
            "method": method,
            "metric": metric,
        }
        return _one(self._tables["cells"], where)

    def _apart(
        self,
        said: str,
        experiment: str,
        model: str,
        budget: str | int,
        peer: str,
        metric: str = "score",
        digits: int | None = None,
        interval: bool = False,
        **place: str | int,
    ) -> str:
        """How far ours is from a peer, if it is so as `said`; with its `interval` in brackets."""
        where = {
            "experiment": experiment,
            "model": self._model(model),
            "budget": budget_token(budget),
            "method": self._study.ours,
            "reference": peer,
            "metric": metric,
        }
        if place:
            where |= {"task": self._task} | place
        row = _one(self._tables["comparisons" if place else "pooled"], where)
        true = {"better": "clearly better", "worse": "clearly worse"}.get(
            row["verdict"], f"{'better' if words.ahead(row) else 'worse'}, not clearly"
        )
        if said != true:
            raise UserError(f"it says {said!r} of {_spoken(where)}, and it is {true!r}")
        sign = 1 if row["difference"] > 0 else -1
        size = _decimal(abs(row["difference"]), metric, digits)
        if not interval:
            return size
        low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
        return f"{size} ({_decimal(low, metric, digits)} to {_decimal(high, metric, digits)})"

    #: By how much ours is clearly better or worse than a peer, or is so without that being clear:
    #: over all headline places of an experiment, or with `length`, and `task`, at one place.
    ahead = partialmethod(_apart, "clearly better")
    behind = partialmethod(_apart, "clearly worse")
    more = partialmethod(_apart, "better, not clearly")
    less = partialmethod(_apart, "worse, not clearly")

    @property
    def _task(self) -> str:
        return self._study.cells[0].task

    def _model(self, name: str) -> str:
        found = [key for key in self._study.models if key.startswith(name)]
        if len(found) != 1:
            raise UserError(f"{len(found)} models begin with {name!r}; name one of them")
        return found[0]


def _one(frame: pd.DataFrame, where: dict) -> pd.Series:
    """The row of a place."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    if len(frame) != 1:
        raise UserError(f"{len(frame) or 'no'} numbers are published of {_spoken(where)}")
    return frame.iloc[0]


def _spoken(where: dict) -> str:
    return ", ".join(str(words.METRIC_TITLE.get(value, value)) for value in where.values())


def _decimal(value: float, metric: str, digits: int | None = None) -> str:
    """`.80`, `1.00`: with the digits of the tables."""
    text = f"{abs(value):.{METRICS.get(metric, 2) if digits is None else digits}f}"
    short = text.removeprefix("0") if text.startswith("0.") else text
    return f"−{short}" if value < 0 else short
