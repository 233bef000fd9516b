"""How Head-Aware compares with its peers and with the full cache."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import findings, latex, layout
from kvbudget.paper.findings import Finding
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import (
    METRIC_TITLE,
    NAMED,
    NO_OURS,
    SHOWN,
    ahead,
    at,
    bits,
    capital,
    count,
    gap,
    is_clear,
    none,
    title,
    with_model,
)
from kvbudget.paper.source import Source

#: Findings of an experiment beside the main one that are told one by one.
FEW = 3
#: Outcomes by model that are told; of more, the appendix tells.
OUTCOMES = 4
#: A sentence has no more numbers than these.
MOST_NUMBERS = 3
_SCORES_BEST = {
    "score": "scores highest,",
    "nll": "has the lowest NLL,",
    "choice": "most often chooses right,",
}


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Sentences that say which method is best at each budget, and by how much."""
    main = findings.main_experiment(src)
    found = list(findings.of_experiment(src, main)) if main else []
    yield "summary/main", _named(src, main)
    yield "summary/answer", _answer(src, found)
    yield "summary/findings", _findings(src, found)
    yield "summary/others", _others(src, main)


def _named(src: Source, main: str | None) -> Latex:
    """The main experiment, as it stands behind a sentence."""
    found = [layout.experiment_title(e) for e in src.study.experiments if e["name"] == main]
    return Latex("".join(rf" (the experiment \emph{{{title}}})" for title in found))


def _shown(src: Source, found: list[Finding]) -> list[Finding]:
    """Findings at the budgets that the main text tells one by one."""
    frame = pd.DataFrame({"budget": [f.budget for f in found], "model": [f.model for f in found]})
    return [f for f in found if f.budget in findings.budgets_shown(frame)]


def _place(src: Source, finding: Finding) -> Latex:
    """The budget, and the model where the study has several."""
    return Latex(with_model(src, finding.model) + at(finding.budget, finding.all_kept))


def _answer(src: Source, found: list[Finding]) -> Latex:
    """At which budgets ours is clearly better than its peers, and at which it is not; nothing where
    there is one budget, of which the claim says it."""
    if not found:
        return NO_OURS
    headed = findings.first_metric(found)
    if len({each.budget for each in headed}) == 1:
        return Latex("")
    outcomes: dict[tuple[str, str], list[Finding]] = {}
    for each in headed:
        outcomes.setdefault((each.model, _outcome(src, each)), []).append(each)
    if len(outcomes) > OUTCOMES:
        return Latex(r"\Cref{sec:comparisons} has the verdicts, budget by budget.")
    metric = METRIC_TITLE[headed[0].metric]
    texts = [
        f"{capital(with_model(src, model) + _budgets(same))}, Head-Aware is {outcome} in {metric}."
        for (model, outcome), same in outcomes.items()
    ]
    return Latex(" ".join(texts))


def _outcome(src: Source, finding: Finding) -> str:
    """Whom ours is clearly better and worse than."""
    verdicts = {peer["verdict"] for peer in finding.peers}
    if verdicts == {"unclear"}:
        return "not clearly better or worse than any peer"
    if len(verdicts) == 1:
        return f"clearly {verdicts.pop()} than every peer"
    named = ((name, _titles_of(src, finding, name)) for name in ("better", "worse"))
    return " and ".join(f"clearly {name} than {titles}" for name, titles in named if titles)


def _budgets(found: list[Finding]) -> str:
    """The budgets of some findings; many are only counted, for the sake of the reader."""
    if len(found) == 1:
        return at(found[0].budget, found[0].all_kept)
    if len(found) > MOST_NUMBERS:
        return f"at {len(found)} budgets"
    named = (
        f"{latex.budget(f.budget, f.all_kept)}{' tokens' if f.budget.isdigit() else ''}"
        for f in found
    )
    return f"at budgets of {latex.listing(map(Latex, named))}"


def _titles_of(src: Source, finding: Finding, verdict: str) -> Latex:
    """The peers of a verdict; of many, those that it is not for, or how many they are."""
    peers = [title(src, p["reference"]) for p in finding.peers if p["verdict"] == verdict]
    others = [title(src, p["reference"]) for p in finding.peers if p["verdict"] != verdict]
    if len(peers) <= NAMED:
        return latex.listing(peers)
    if len(others) <= NAMED:
        return Latex(f"every peer but {latex.listing(others)}")
    return Latex(f"{len(peers)} of {len(finding.peers)} peers")


def _findings(src: Source, found: list[Finding]) -> Latex:
    """A paragraph for each model and budget that the main text tells; nothing where
    `summary/answer` says why."""
    headed = findings.first_metric(found)
    several = len({f.model for f in found}) > 1
    paragraphs: dict[str, list[str]] = {}
    for each in _shown(src, found) if found else []:
        said = paragraphs.setdefault(_place(src, each), [])
        if each in headed:
            said.append(_lead(src, each))
        if several:  # the table beside it tells the rest
            continue
        if each in headed:
            said += [_best_peer(src, peer) for peer in each.best_peers()]
        else:
            said.append(_beside(src, each))
    texts = [
        rf"\paragraph{{{capital(head)}.}} {' '.join(said)}" for head, said in paragraphs.items()
    ]
    return Latex(" ".join(texts))


def _lead(src: Source, finding: Finding) -> str:
    """Which method is best, and what the full cache has."""
    best = finding.peers[0]
    ours, theirs = latex.decimal(finding.value), latex.decimal(best["reference_value"])
    full = _full_value(src, finding)
    beside = f" where the full cache comes to {full}" if full else ""
    if ours == theirs:
        named = f"Head-Aware and {title(src, best['reference'])}"
        return f"{named} are level at the top with {ours}{beside and ','}{beside}."
    if finding.leads:
        return f"Head-Aware {_SCORES_BEST[finding.metric]} {ours}{beside and ','}{beside}."
    return (
        f"{capital(title(src, best['reference']))} {_SCORES_BEST[finding.metric]} {theirs}; "
        f"Head-Aware comes to {ours}{f' and the full cache to {full}' if full else ''}."
    )


def _full_value(src: Source, finding: Finding) -> Latex | None:
    frame = src.table("pooled")
    frame = frame[(frame["kind"] == "full") & (frame["method"] == src.study.ours)]
    for name in ("experiment", "model", "metric", "budget"):
        frame = frame[frame[name] == getattr(finding, name)]
    return None if frame.empty else latex.decimal(frame["reference_value"].iloc[0])


def _best_peer(src: Source, row: dict) -> str:
    """How far the best peer of some bits is behind or ahead."""
    side = "behind" if ahead(row) else "ahead"
    if row["difference"] == 0:
        side = "apart"
    return (
        f"The best peer in {bits(row['reference_bits'])}, {title(src, row['reference'])}, is "
        f"{gap(row)} {side}, {is_clear(row)}."
    )


def _beside(src: Source, finding: Finding) -> str:
    """Ours and its best peer in a further metric."""
    peer = finding.peers[0]
    side = "better than" if ahead(peer) else "worse than"
    if peer["difference"] == 0:
        side = "from"
    return (
        f"In {METRIC_TITLE[finding.metric]} Head-Aware is {gap(peer)} {side} its best peer, "
        f"{title(src, peer['reference'])}, {is_clear(peer)}."
    )


def _others(src: Source, main: str | None) -> Latex:
    """Ours and its best peer in the experiments beside the main one, where ours evicts."""
    texts = []
    for experiment in src.study.experiments:
        if experiment["name"] == main:
            continue
        found = findings.first_metric(findings.of_experiment(src, experiment["name"]))
        found = [each for each in found if not each.all_kept]
        if len(found) > FEW:
            texts.append(_counted(experiment, found))
        elif found:
            texts.append(_each(src, experiment, found))
    if not texts:
        return Latex(
            "No other experiment of this study sets Head-Aware beside a peer where it evicts."
        )
    more = " The appendix has the others." if len(texts) > SHOWN else ""
    return Latex(" ".join(texts[:SHOWN]) + more)


def _each(src: Source, experiment: dict, found: list[Finding]) -> str:
    """How far ours is from its best peer, model by model and budget by budget."""
    told = "; ".join(
        _beside_best(src, each, named=not number or each.model != found[number - 1].model)
        for number, each in enumerate(found)
    )
    return (
        rf"In \emph{{{layout.experiment_title(experiment)}}}, Head-Aware is, in "
        f"{METRIC_TITLE[found[0].metric]}, {told}."
    )


def _beside_best(src: Source, finding: Finding, named: bool) -> str:
    """How far ours is from its best peer: `0.03 behind KVzip at a budget of 10%, which is …`, with
    the model where it is to be `named`."""
    peer = finding.peers[0]
    side = "ahead of" if ahead(peer) else "behind" if peer["difference"] else "from"
    return (
        f"{latex.decimal(abs(peer['difference']))} {side} {title(src, peer['reference'])} "
        f"{with_model(src, finding.model) if named else ''}"
        f"{at(finding.budget, finding.all_kept)}, {is_clear(peer)}"
    )


def _counted(experiment: dict, found: list[Finding]) -> str:
    """How often ours is clearly better and worse than its best peer, where findings are many."""
    verdicts = [each.peers[0]["verdict"] for each in found]
    return (
        rf"In \emph{{{layout.experiment_title(experiment)}}} Head-Aware is clearly better than its "
        f"best peer in {METRIC_TITLE[found[0].metric]} in {none(verdicts.count('better'))} of "
        f"{count(len(found), 'pair')} of model and budget, and clearly worse in "
        f"{none(verdicts.count('worse'))}."
    )
