"""What a study lets the paper claim: its title, and the answer to the question that it asks.

Peers that read the context twice stand apart from those that read it once, as ours does. "As good
as" needs more than a difference that is not clear: its interval must exclude a loss of `MARGIN`.
"""

from collections.abc import Iterator

from kvbudget.analysis.metrics import METRICS
from kvbudget.paper import findings, latex
from kvbudget.paper.findings import Finding
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import METRIC_TITLE, NO_OURS, count, none, title
from kvbudget.paper.source import Source
from kvbudget.policies.registry import METHODS

#: What may be lost to a peer that ours is said to equal: of a score, or nats a token.
MARGIN = 0.05
#: Presses of kvpress that read the context twice.
_TWICE = ("KVzipPress", "KVgradPress")


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """The title of the paper, and how ours stands to peers of one reading and of two."""
    main = findings.main_experiment(src)
    found = findings.first_metric(findings.of_experiment(src, main)) if main else []
    rows = [row for each in found if not each.all_kept for row in each.peers]
    twice = [row for row in rows if _reads_twice(src, row["reference"])]
    once = [row for row in rows if not _reads_twice(src, row["reference"])]
    yield "paper/title", _title(once, twice)
    yield "summary/claim", _claim(src, found, once, twice)


def _title(once: list[dict], twice: list[dict]) -> Latex:
    if not once or any(row["verdict"] != "better" for row in once):
        return Latex("What Heads Keep")
    if twice and all(map(_equals, twice)):
        return Latex("One Reading for Two")
    return Latex("More From One Reading")


def _claim(src: Source, found: list[Finding], once: list[dict], twice: list[dict]) -> Latex:
    if not found:
        return NO_OURS
    metric = METRIC_TITLE[found[0].metric]
    texts = []
    if once:
        texts.append(
            f"Against peers that read once, Head-Aware is clearly better in {metric} in "
            f"{_of(once, 'better')} and clearly worse in {none(_number(once, 'worse'))}."
        )
    if twice:
        peers = dict.fromkeys(title(src, row["reference"]) for row in twice)
        read = "read" if len(peers) > 1 else "reads"
        texts.append(
            f"Against {latex.listing(peers)}, which {read} twice, it is clearly better in "
            f"{_of(twice, 'better')} and clearly worse in {none(_number(twice, 'worse'))}."
        )
        texts.append(
            f"A loss of more than {latex.decimal(MARGIN)} is excluded in "
            f"{none(sum(map(_equals, twice)))} of them, by the interval of the difference."
        )
    return Latex(" ".join(texts) or "Head-Aware evicts nothing at the budgets of this study.")


def _of(rows: list[dict], verdict: str) -> str:
    return f"{none(_number(rows, verdict))} of {count(len(rows), 'comparison')}"


def _number(rows: list[dict], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def _equals(row: dict) -> bool:
    """Whether the interval excludes a loss of more than the margin; a missing one does not."""
    if METRICS[row["metric"]].higher_is_better:
        return row["ci_low"] >= -MARGIN
    return row["ci_high"] <= MARGIN


def _reads_twice(src: Source, method: str) -> bool:
    entry = src.study.config["methods"][method]
    return METHODS[entry["policy"]].holds_context or entry.get("press") in _TWICE
