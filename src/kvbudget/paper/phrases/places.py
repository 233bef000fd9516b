"""How Head-Aware compares with its peers place by place, where it evicts."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, shown
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import (
    METRIC_TITLE,
    NAMED,
    at,
    bits,
    capital,
    count,
    decidable,
    in_turn,
    none,
    title,
    with_model,
)
from kvbudget.paper.source import Source
from kvbudget.paper.tally import Tally, against_peers, tallies
from kvbudget.study.plan import FULL

#: The least difference that prints.
LEAST = 0.01


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """How often differences are clear: by bits, on all tasks, where the full cache fails; and where
    ours loses."""
    yield "summary/bits", _by_bits(src)
    yield "summary/breadth", _breadth(src)
    yield "summary/tasks", _by_task(src)
    yield "summary/outside", _outside(src)
    yield "summary/losses", _losses(src)


def _by_bits(src: Source) -> Latex:
    """How often a difference is clear, against peers in sixteen and in fewer bits apart."""
    frame = against_peers(src)
    frame = frame[frame["headline"]]
    if frame.empty:
        return Latex("No comparison with a baseline, where Head-Aware evicts, counts as headline.")
    texts = [
        f"Against peers in {bits(name)}, {_verdicts(part, 'headline comparison')}."
        for (name, _), part in frame.groupby(["reference_bits", "metric"], sort=False)
    ]
    return Latex(" ".join(texts))


def _verdicts(part: pd.DataFrame, what: str) -> str:
    """How often ours is clearly better and worse, in comparisons of one metric."""
    of = f"{count(len(part), what)} in {METRIC_TITLE[part['metric'].iloc[0]]}"
    better, worse = _number(part, "better"), _number(part, "worse")
    if not better and not worse:
        return f"no difference is clear among {of}"
    return (
        f"Head-Aware is clearly better in {none(better)} and clearly worse in {none(worse)} of {of}"
    )


def _number(part: pd.DataFrame, verdict: str) -> int:
    return int((part["verdict"] == verdict).sum())


def _breadth(src: Source) -> Latex:
    """Mean scores over headline tasks at one length and budget, of ours, the full cache and the
    best peer; nothing where these are few."""
    chosen = shown.tasks(src)
    if chosen is None or src.study.ours is None:
        return Latex("")
    cells = src.cells[(src.cells["metric"] == "score") & src.cells["headline"]]
    cells = cells[cells["length"] == chosen.length]
    cells = cells[cells["budget"].isin([chosen.budget, FULL])]
    texts = []
    for model in chosen.models:
        scores = cells[cells["model"] == model].pivot(
            index="method", columns="task", values="value"
        )
        means = scores.dropna().mean(axis=1)  # of what is measured on all of them
        peers = means.reindex(src.study.baselines).dropna()
        full = means[[src.study.policy(method) == FULL for method in means.index]]
        if src.study.ours not in means or peers.empty or full.empty:
            continue
        texts.append(
            f"Over the headline tasks at {chosen.length:,} tokens and {at(chosen.budget, False)}, "
            f"{latex.title(src.study, 'models', model)} scores "
            f"{latex.decimal(means[src.study.ours])} in the mean with Head-Aware; "
            f"{latex.decimal(full.iloc[0])} with the full cache; {latex.decimal(peers.max())} with "
            f"the best peer, {title(src, str(peers.idxmax()))}."
        )
    return Latex(" ".join(texts))


def _by_task(src: Source) -> Latex:
    """How the score of ours compares with each peer's over tasks at one length and budget; nothing
    where these are few."""
    chosen = shown.tasks(src)
    if chosen is None:
        return Latex("")
    peers = {
        method
        for model in chosen.models
        for method in shown.methods(
            src, [(model, task, chosen.length) for task in chosen.tasks], chosen.budget
        )
    }
    frame = against_peers(src)
    there = (frame["length"] == chosen.length) & (frame["budget"] == chosen.budget)
    there &= frame["model"].isin(chosen.models) & frame["reference"].isin(peers)
    frame = frame[there & frame["headline"] & (frame["metric"] == "score")]
    if frame.empty:
        return Latex("")
    return Latex(
        "In score, over headline pairs of model and task, Head-Aware is clearly better than "
        f"{_whom(src, frame, 'better')}, and clearly worse than {_whom(src, frame, 'worse')}."
    )


def _whom(src: Source, frame: pd.DataFrame, verdict: str) -> str:
    """The peers to which ours compares so anywhere, and how often."""
    named = [
        Latex(f"{title(src, str(reference))} in {number} of {len(part)}")
        for reference, part in frame.groupby("reference", sort=False)
        if (number := _number(part, verdict))
    ]
    return latex.listing(named) or "no peer"


def _outside(src: Source) -> Latex:
    """Mean scores of ours where the full cache fails, on the task and at the budget of the main
    text; nothing where it fails nowhere there."""
    task, budget = shown.task(src), shown.budget(src)
    cells = src.cells[(src.cells["metric"] == "score") & (src.cells["task"] == task)]
    cells = cells.merge(src.failing)
    ours = cells[(cells["method"] == src.study.ours) & (cells["budget"] == budget)]
    told = []
    for model, part in ours.groupby("model", sort=False):
        full = cells[(cells["model"] == model) & (cells["policy"] == FULL)]
        score, theirs = (latex.decimal(each["value"].mean()) for each in (part, full))
        name = latex.title(src.study, "models", str(model))
        told.append(
            (
                f"Head-Aware scores {score} with {name} in the mean (full cache: {theirs})",
                f"{score} with {name} ({theirs})",
            )
        )
    if not told:
        return Latex("")
    return Latex(
        "Where the full cache itself fails, at places that count for no headline, on "
        f"{latex.title(src.study, 'tasks', str(task))} {at(str(budget), False)}, {in_turn(told)}."
    )


def _losses(src: Source) -> Latex:
    """Where ours loses to a peer with each model, how often and by how much; headline or not."""
    frame = against_peers(src)
    if frame.empty:
        return Latex("Nowhere is Head-Aware set beside a baseline and evicts.")
    found = list(tallies(frame))
    if not any(each.worse for each in found):
        if not decidable(frame).any():
            return Latex("With so few contexts no comparison could have shown a loss.")
        none_ = "In no comparison with a baseline, headline or not, is Head-Aware clearly worse."
        return Latex(" ".join([none_, *_lost_together(src)]))
    texts = []
    for model in src.study.models:
        mine = [each for each in found if each.model == model]
        name = latex.title(src.study, "models", model)
        if told := list(_lost_in_each_metric(src, mine)):
            texts.append(f"With {name}, Head-Aware is clearly worse {'; '.join(told)}.")
        elif mine:
            of = count(sum(each.places for each in mine), "comparison")
            texts.append(f"With {name}, Head-Aware is clearly worse in none of {of} in any metric.")
    return Latex(" ".join([*texts, *_lost_together(src)]))


def _lost_in_each_metric(src: Source, found: list[Tally]) -> Iterator[str]:
    """How often ours loses with one model, to whom most and by how much: a clause a metric."""
    for metric, name in METRIC_TITLE.items():
        lost = [each for each in found if each.metric == metric and each.worse]
        if lost:
            of = sum(each.places for each in found if each.metric == metric)
            often = sum(each.worse for each in lost)
            yield f"in {name} in {often} of {count(of, 'comparison')}, {_to_whom(src, lost)}"


def _to_whom(src: Source, lost: list[Tally]) -> str:
    """The one peer to which ours loses; or of several those to which most often, and the one to
    which it loses most."""
    worst = max(lost, key=lambda each: each.worst)
    size, whom = _size(worst.worst), title(src, worst.reference)
    if len(lost) == 1:
        return f"than {whom}, by {size if worst.worse == 1 else f'up to {size}'}"
    most = max(each.worse for each in lost)
    often = [title(src, each.reference) for each in lost if each.worse == most]
    named = latex.listing(often) if len(often) <= NAMED else count(len(often), "peer")
    than = "than" if len(often) == len(lost) else "most often than"
    return f"{than} {named}, and by {size} at most, than {whom}"


def _lost_together(src: Source) -> Iterator[str]:
    """Losses that show over headline places of an experiment together."""
    frame = src.table("pooled")
    frame = frame[(frame["kind"] == "baseline") & (frame["method"] == src.study.ours)]
    lost = frame[(frame["verdict"] == "worse") & ~frame["all_kept"]].to_dict("records")
    told = [
        (
            f"over headline places of an experiment together, it is clearly worse than "
            f"{_lost_in(src, row)}",
            f"than {_lost_in(src, row)}",
        )
        for row in lost[:NAMED]
    ]
    if told:
        more = rf"; and {len(lost) - NAMED} more (\cref{{sec:comparisons}})"
        yield capital(f"{in_turn(told)}{more if len(lost) > NAMED else ''}.")


def _lost_in(src: Source, row: dict) -> str:
    where = with_model(src, row["model"]) + at(row["budget"], False)
    whom, metric = title(src, row["reference"]), METRIC_TITLE[row["metric"]]
    return f"{whom} in {metric} {where}, by {_size(abs(row['difference']))}"


def _size(difference: float) -> str:
    """A difference that is clear; never one that prints as nothing."""
    return latex.decimal(difference) if difference >= LEAST / 2 else f"less than {LEAST}"
