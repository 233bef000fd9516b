"""Quality of one experiment and model: a row for each task, method and budget."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.budgets import ALL_KEPT
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import INTERVAL, Column, Row
from kvbudget.paper.source import Source
from kvbudget.paper.tables.marks import MEANING, marks
from kvbudget.study.plan import AXES, FULL

#: BLEU is of a corpus, and lagging nearly the same in every sample: they have no interval.
COLUMNS = (
    Column("kept", Latex("kept"), 26),
    Column("score", Latex("score"), INTERVAL),
    Column("nll", Latex("NLL"), INTERVAL),
    Column("agreement", Latex("agreement"), INTERVAL),
    Column("bleu", Latex("BLEU")),
    Column("al", Latex("AL")),
    Column("laal", Latex("LAAL")),
)


def floats(src: Source, experiment: dict, model: str, keys: list[tuple]) -> Iterator[dict]:
    """Floats of the experiment's cells of one model, by as many lengths as fit side by side."""
    values = by_metric(src)
    columns = [c for c in COLUMNS if any((*key, c.metric) in values for key in keys)]
    if len(columns) < 2:  # nothing but what is kept
        return
    caption = _caption(src, experiment, model, keys)
    if any(column.metric == "laal" for column in columns):
        caption += _streaming_note(src, model)
    for lengths in layout.by_width(sorted({key[2] for key in keys}), columns):
        rows = _rows(src, values, model, lengths, columns, keys)
        yield from layout.floats(rows, lengths, columns, caption)


def by_metric(src: Source) -> dict[tuple, dict]:
    """Rows of cells.csv by (model, task, length, method, budget, metric)."""
    rows = src.cells.to_dict("records")
    return {tuple(row[name] for name in (*AXES, "metric")): row for row in rows}


def _rows(
    src: Source,
    values: dict[tuple, dict],
    model: str,
    lengths: list[int],
    columns: list[Column],
    keys: list[tuple],
) -> list[Row]:
    rows = []
    marked = marks(src)
    for task in dict.fromkeys(key[1] for key in keys):
        group = latex.title(src.study, "tasks", task)
        mine = [key for key in keys if key[1] == task]
        for method, budget in layout.method_budget_rows(src.study, mine):
            places = [(model, task, length, method, budget) for length in lengths]
            names = [(*key, column.metric) for key in places for column in columns]
            cells = [values.get(name) for name in names]
            signs = [marked.get(name, "") for name in names]
            rows.append(
                Row(
                    group,
                    [
                        layout.named(src.study, "methods", method),
                        layout.budget(src, places),
                        *map(_cell, columns * len(lengths), cells, signs),
                    ],
                )
            )
            if any(found and not pd.isna(found["seed_low"]) for found in cells):
                rows.append(Row(group, [Latex(r"\quad its seeds"), Latex(""), *map(_seeds, cells)]))
    return rows


def _cell(column: Column, found: dict | None, mark: str) -> Latex:
    if not found:
        return Latex(latex.DASH)
    if column.metric == "kept":
        return _kept(found)
    if column.width == INTERVAL:
        return layout.with_interval(found["value"], found["ci_low"], found["ci_high"], mark=mark)
    return latex.decimal(found["value"])


def _kept(found: dict) -> Latex:
    """Share of the context's tokens that a head keeps."""
    whole = found["all_kept"] or found["policy"] == FULL
    return Latex("all" if whole else rf"{100 * found['value']:.0f}\%")


def _seeds(found: dict | None) -> Latex:
    """The least and the most over seeds of a calibration."""
    if not found or pd.isna(found["seed_low"]):
        return Latex("")
    return Latex(f"{latex.decimal(found['seed_low'])} to {latex.decimal(found['seed_high'])}")


def _caption(src: Source, experiment: dict, model: str, keys: list[tuple]) -> str:
    return (
        rf"{layout.experiment_title(experiment)}. {latex.title(src.study, 'models', model)}: "
        rf"quality at equal bytes. {layout.sample_note(src, keys)} In brackets: 95\% "
        r"intervals over contexts. \emph{Kept} is the share of the context's tokens that a KV head "
        rf"keeps in the mean; a budget at which nothing is evicted is called \emph{{{ALL_KEPT}}}. "
        r"Higher scores and lower NLL are better." + _marked(src) + _notes_on_rows(src, keys)
    )


def _marked(src: Source) -> str:
    ours = src.study.ours
    return " " + MEANING.format(latex.title(src.study, "methods", ours)) if ours else ""


def _notes_on_rows(src: Source, keys: list[tuple]) -> str:
    methods = src.study.config["methods"]
    seeded = [m for m in dict.fromkeys(k[3] for k in keys) if "calibration_seeds" in methods[m]]
    chunked = [m for m in dict.fromkeys(k[3] for k in keys) if methods[m].get("prefill_chunk")]
    note = ""
    if seeded:
        titles = latex.listing(latex.title(src.study, "methods", m) for m in seeded)
        note += f" Means over seeds of the calibration, whose range stands below: {titles}."
    if chunked:
        titles = latex.listing(latex.title(src.study, "methods", m) for m in chunked)
        note += f" Prefilled in chunks, unlike the rest: {titles}."
    weak = _weak_places(src, keys)
    if weak:
        named = latex.listing(
            Latex(f"{latex.title(src.study, 'tasks', task)} ({_spoken(lengths)})")
            for task, lengths in weak.items()
        )
        note += (
            " The full cache, chance taken off, scores below one half, so there is no headline, in "
            f"{named}."
        )
    return note


def _weak_places(src: Source, keys: list[tuple]) -> dict[str, list[int]]:
    """Tasks that the full cache fails, and at which lengths, among cells of one model."""
    mine = {key[:3] for key in keys}
    weak: dict[str, list[int]] = {}
    for place in src.failing.itertuples():
        if (place.model, place.task, place.length) in mine:
            weak.setdefault(place.task, []).append(place.length)
    return weak


def _spoken(lengths: list[int]) -> str:
    return ", ".join(f"{length:,}" for length in sorted(lengths))


def _streaming_note(src: Source, model: str) -> str:
    target = src.cells[
        (src.cells["metric"] == "cache_bytes_target") & (src.cells["model"] == model)
    ]
    mebibytes = latex.metric("cache_bytes_target", target["value"].mean())
    return (
        r" Translations: wait-\(k\) over words, each method's budget for the source alone; the"
        r" target is kept whole, apart and alike for all methods,"
        rf" {mebibytes} MiB in the mean. NLL is of the reference, each word given what is read by"
        r" then; agreement is the share of its tokens in whose place the method would have written"
        r" what the full cache would. BLEU is of the model's own greedy translations of all"
        r" passages; AL and LAAL are their lagging in source words, with the reference's length."
    )
