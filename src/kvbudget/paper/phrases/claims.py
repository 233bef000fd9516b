"""What a study lets the paper claim: its title, and the answer to the question that it asks.

Peers that read the context twice stand apart from those that read it once, as ours does. "As good
as" needs more than a difference that is not clear: its interval must exclude a loss of `MARGIN`.
"""

from collections.abc import Iterator

from kvbudget.analysis.metrics import METRICS
from kvbudget.paper import findings, latex
from kvbudget.paper.findings import Finding
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import (
    METRIC_TITLE,
    NAMED,
    NO_OURS,
    ahead,
    bits,
    capital,
    count,
    gap,
    in_turn,
    is_clear,
    none,
    title,
)
from kvbudget.paper.source import Source
from kvbudget.policies.registry import METHODS

#: What may be lost to a peer that ours is said to equal: of a score, or nats a token.
MARGIN = 0.05
#: Presses of kvpress that read the context twice.
_TWICE = ("KVzipPress", "KVgradPress")
_OUTCOMES = {
    "better": "clearly better than",
    "worse": "clearly worse than",
    "unclear": "not clearly apart from",
}


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """The title of the paper, and how ours stands to peers of one reading and of two."""
    main = findings.main_experiment(src)
    found = findings.first_metric(findings.of_experiment(src, main)) if main else []
    rows = [row for each in found if not each.all_kept for row in each.peers]
    twice = [row for row in rows if _reads_twice(src, row["reference"])]
    once = [row for row in rows if not _reads_twice(src, row["reference"])]
    yield "paper/title", _title(once, twice)
    yield "summary/claim", _claim(src, found, once, twice)
    yield "summary/full", _full(src, main, found)


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
    texts = [_against_once(src, once, metric)] if once else []
    if len(twice) == 1:
        texts.append(_against_one(src, twice[0], metric))
    elif twice:
        peers = dict.fromkeys(title(src, row["reference"]) for row in twice)
        read = "read" if len(peers) > 1 else "reads"
        texts.append(
            f"against {latex.listing(peers)}, which {read} twice, Head-Aware is clearly better in "
            f"{metric} in {_of(twice, 'better')} and clearly worse in "
            f"{none(_number(twice, 'worse'))}."
        )
        texts.append(
            f"a loss of more than {latex.decimal(MARGIN)} is excluded in "
            f"{none(sum(map(_equals, twice)))} of them, by the interval of the difference."
        )
    if not texts:
        return Latex("Head-Aware evicts nothing at the budgets of this study.")
    texts[0] = _scope(src, [*once, *twice]) + texts[0]
    return Latex(" ".join(map(capital, texts)))


def _full(src: Source, experiment: str | None, found: list[Finding]) -> Latex:
    """Ours beside the full cache, over the same places; nothing where it is not measured."""
    frame = src.table("pooled")
    frame = frame[(frame["kind"] == "full") & (frame["method"] == src.study.ours)]
    frame = frame[(frame["experiment"] == experiment) & ~frame["all_kept"]]
    rows = frame[frame["metric"].isin({each.metric for each in found})].to_dict("records")
    if not rows:
        return Latex("")
    metric = METRIC_TITLE[rows[0]["metric"]]
    if len(rows) == 1:
        side = "worse" if ahead(rows[0]) else "better"
        return Latex(
            f"The full cache is {side} in {metric} by {gap(rows[0])}, {is_clear(rows[0])}."
        )
    return Latex(f"The full cache is clearly better in {metric} in {_of(rows, 'worse')}.")


def _scope(src: Source, rows: list[dict]) -> str:
    """The models that a claim is about, where others of the study count for no headline."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    if len(models) == len(src.study.models):
        return ""
    return f"with {latex.listing(latex.title(src.study, 'models', model) for model in models)}, "


def _against_once(src: Source, rows: list[dict], metric: str) -> str:
    """Ours beside peers of one reading, by their bits: few bits are an advantage of their own."""
    told = []
    for name in dict.fromkeys(row["reference_bits"] for row in rows):
        part = [row for row in rows if row["reference_bits"] == name]
        few = len(part) == len({row["reference"] for row in part}) <= NAMED
        clauses = _by_name(src, part, metric) if few else _counted(part, metric)
        whom = bits(name)
        told.append(
            (
                f"against peers that read once in {whom}, Head-Aware is {clauses[0]}",
                f"against those in {whom} {clauses[1]}",
            )
        )
    return f"{in_turn(told)}."


def _counted(rows: list[dict], metric: str) -> tuple[str, str]:
    """How often ours is clearly better and worse, in full and in short."""
    better, worse = none(_number(rows, "better")), none(_number(rows, "worse"))
    return (
        f"clearly better in {metric} in {_of(rows, 'better')} and clearly worse in {worse}",
        f"in {better} of {len(rows)} and in {worse}",
    )


def _by_name(src: Source, rows: list[dict], metric: str) -> tuple[str, str]:
    """Few peers by their names: those that ours is clearly better than, and so on."""
    told = []
    for verdict, outcome in _OUTCOMES.items():
        peers = [title(src, row["reference"]) for row in rows if row["verdict"] == verdict]
        if peers:
            told.append(f"{outcome} {latex.listing(peers)}")
    return f"in {metric} {', '.join(told)}", ", ".join(told)


def _against_one(src: Source, row: dict, metric: str) -> str:
    """Ours beside the only peer of two readings at the only budget."""
    side = "better" if ahead(row) else "worse" if row["difference"] else "apart"
    margin = ""
    if row["verdict"] != "better":
        excluded = "is" if _equals(row) else "is not"
        margin = f" A loss of more than {latex.decimal(MARGIN)} {excluded} excluded."
    return (
        f"against {title(src, row['reference'])}, which reads twice, Head-Aware is {side} in "
        f"{metric} by {gap(row)}, {is_clear(row)}.{margin}"
    )


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
