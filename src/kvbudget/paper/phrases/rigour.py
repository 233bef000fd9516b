"""What comparisons can show: which places count as headline, how small an effect is seen, and what
part of it calibration and guessing have."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import budgets, findings, latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import (
    METRIC_TITLE,
    NO_OURS,
    SHOWN,
    at,
    capital,
    count,
    decidable,
    percent,
    span,
    title,
    visible,
    with_model,
)
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES, FULL


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Sentences of the protocol and of its power."""
    yield "summary/headline", _headline_tasks(src)
    yield "summary/failing", _failing(src)
    yield "summary/power", _power(src)
    yield "summary/families", _families(src)
    yield "summary/seeds", _seeds(src)
    yield "summary/apart", _apart(src)
    yield "summary/choice", _choice(src)


def _headline_tasks(src: Source) -> Latex:
    if not (src.cells["policy"] == FULL).any():
        return Latex("This study measures no full cache, so no place is headline.")
    weak, total = src.failing, len(src.places)
    if not total:
        return Latex("No task of this study is scored, so every place counts.")
    combinations = f"{count(total, 'combination')} of model, task and length"
    if weak.empty:
        verb = "is" if total == 1 else "are"
        return Latex(f"In this study {combinations} {verb} scored, and none fails.")
    return Latex(
        f"In this study the full cache fails in {len(weak)} of {combinations}, which count for no "
        r"headline (\cref{sec:details} names them)."
    )


def _failing(src: Source) -> Latex:
    """Where the full cache fails; nothing where it fails nowhere."""
    named = [
        f"{latex.title(src.study, 'models', model)} on {latex.title(src.study, 'tasks', task)}"
        f"{_lengths(part)}"
        for (model, task), part in src.places.groupby(["model", "task"], sort=False)
        if not part["headline"].all()
    ]
    if not named:
        return Latex("")
    more = " and others" if len(named) > SHOWN else ""
    return Latex(
        "Places that count for no headline, as the full cache fails there: "
        f"{latex.listing(map(Latex, named[:SHOWN]))}{more}."
    )


def _lengths(part: pd.DataFrame) -> str:
    """Lengths at which a task fails; nothing where it fails at all of them."""
    weak = part.query("not headline")
    if len(weak) == len(part):
        return ""
    return f" at {latex.listing(Latex(f'{length:,}') for length in sorted(weak['length']))} tokens"


def _families(src: Source) -> Latex:
    """What is corrected together."""
    names = [Latex(rf"\emph{{{name}}}") for name in src.study.config["families"]]
    return Latex(
        f"Comparisons that agree in {latex.listing(names)} are one family; where places are taken "
        "together, all references of a kind are in one."
    )


def _power(src: Source) -> Latex:
    """What so many contexts can show, of comparisons of ours with a baseline."""
    frame = src.comparisons[src.comparisons["kind"] == "baseline"]
    if frame.empty:
        return NO_OURS
    reached = decidable(frame)
    if not reached.any():
        most = int(frame["n_contexts"].max())
        return Latex(
            f"With at most {count(most, 'context')} and {count(int(frame['family'].min()), 'test')}"
            " to a family or more, no comparison of this study can be clear."
        )
    contexts = span(frame["n_contexts"].min(), frame["n_contexts"].max(), 0)
    texts = [f"A comparison at one place rests on {contexts} contexts."]
    shown = visible(frame)
    if shown:
        texts.append(
            f"Four times out of five it would show a true difference of {shown} (medians)."
        )
    if not reached.all():
        texts.append(
            f"In {int((~reached).sum())} of {count(len(frame), 'comparison')} the contexts are too "
            "few for any verdict."
        )
    return Latex(" ".join(texts))


def _seeds(src: Source) -> Latex:
    """How far seeds of a calibration lie apart."""
    frame = src.cells[src.cells["seeds"] > 1].dropna(subset="seed_low")
    if frame.empty:
        return Latex(
            "Each calibration has one seed in this study, so what chance does in it is not seen."
        )
    texts = []
    for (method, metric), part in frame.groupby(["method", "metric"], sort=False):
        if metric in METRIC_TITLE:
            apart = part["seed_high"] - part["seed_low"]
            texts.append(
                f"The {METRIC_TITLE[metric]} of {title(src, method)}, a mean over "
                f"{int(part['seeds'].max())} calibrations of other seeds, differs between them by "
                f"{span(apart.median(), apart.max()).replace(' to ', ' in the median and ')} at "
                "most."
            )
    return Latex(" ".join(texts[:SHOWN]))


def _apart(src: Source) -> Latex:
    """How far the scores of one calibration and another lie apart at most; nothing where each has
    one seed."""
    frame = src.cells[(src.cells["seeds"] > 1) & (src.cells["metric"] == "score")]
    most = (frame["seed_high"] - frame["seed_low"]).max()
    if frame.empty or pd.isna(most):
        return Latex("")
    return Latex(
        f"Calibrations with other seeds score up to {latex.decimal(most)} apart "
        r"(\cref{sec:details})."
    )


def _choice(src: Source) -> Latex:
    """Of ours, in the main experiment: whether a needle comes, and whether it is the right one."""
    main = findings.main_experiment(src)
    cells = src.cells[(src.cells["method"] == src.study.ours) & src.cells["headline"]]
    keys = {c.key for c in src.study.cells if main in c.experiments}
    here = cells[list(AXES)].apply(tuple, axis=1).isin(keys) if len(cells) else cells["headline"]
    models = [m for m in src.study.models if m in set(cells.loc[here, "model"])]
    means = _means(cells[here & (cells["model"] == models[0])]) if models else pd.DataFrame()
    if means.empty:
        return Latex("No headline task of this study asks for one of several needles.")
    texts = []
    shown = findings.budgets_shown(cells[here])
    rows = sorted(means.to_dict("records"), key=lambda row: budgets.order(row["budget"]))
    for row in (row for row in rows if row["budget"] in shown):
        where = capital(with_model(src, models[0]) + at(row["budget"], row["all_kept"]))
        texts.append(
            f"{where}, {percent(row['any'])} of Head-Aware's answers are some needle of the "
            "context."
        )
        if not pd.isna(row["given_any"]):
            texts.append(f"Of these {percent(row['given_any'])} are the right one.")
        texts.append(
            f"By likelihood it prefers the right needle in {percent(row['choice'])} of "
            f"questions, where chance is {percent(row['chance'])}."
        )
    return Latex(" ".join(texts))


def _means(cells: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks and lengths, a row a budget."""
    choosing = cells[cells["metric"].isin(["any", "given_any", "choice", "chance"])]
    if choosing.empty:
        return choosing
    frame = choosing.pivot_table(
        index=["budget", "all_kept"], columns="metric", values="value", sort=False
    )
    return frame.reindex(columns=["any", "given_any", "choice", "chance"]).reset_index()
