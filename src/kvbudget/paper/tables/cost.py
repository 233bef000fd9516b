"""Cost of one experiment and model: a row for each method and budget."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Column, Row
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES

COLUMNS = (
    Column("cache_bytes_allocated", Latex(r"\shortstack[r]{cache\\(MiB)}")),
    Column("prefill_s", Latex(r"\shortstack[r]{prefill\\(s)}")),
    Column("decode_ms_per_token", Latex(r"\shortstack[r]{decode\\(ms/token)}"), 42),
)
#: Of caches that a library of others makes, and of ours beside them: what is seen, and peaks.
OF_OTHERS = (
    Column("cache_bytes_claimed", Latex(r"\shortstack[r]{claimed\\(MiB)}"), 42),
    Column("peak_rss_bytes", Latex(r"\shortstack[r]{process\\(MiB)}"), 42),
    Column("peak_cuda_bytes", Latex(r"\shortstack[r]{device\\(MiB)}"), 42),
)


def floats(src: Source, experiment: dict, model: str, keys: list[tuple]) -> Iterator[dict]:
    """Floats of the experiment's cells of one model, by as many lengths as fit side by side."""
    tasks = _timed(src, keys)
    frame = src.cells[(src.cells["model"] == model) & src.cells["task"].isin(tasks)]
    for machine, part in frame.groupby("machine", sort=False):
        there = set(part[list(AXES)].itertuples(index=False, name=None))
        mine = [key for key in keys if key in there]
        if mine:
            yield from _of_machine(src, experiment, str(machine), part, mine)


def _of_machine(
    src: Source, experiment: dict, machine: str, part: pd.DataFrame, keys: list[tuple]
) -> Iterator[dict]:
    """Times of two machines stand in no table together."""
    means = part.groupby(["length", "method", "budget", "metric"])["value"].mean().to_dict()
    others = layout.others(src.study, keys)
    columns = [*COLUMNS[:1], *OF_OTHERS, *COLUMNS[1:]] if others else COLUMNS
    columns = [c for c in columns if any((*key[2:], c.metric) in means for key in keys)]
    if not columns:
        return
    caption = _caption(src, experiment, machine, keys) + (_of_others(columns) if others else "")
    for lengths in layout.by_width(sorted({key[2] for key in keys}), columns):
        rows = []
        for method, budget in layout.method_budget_rows(src.study, keys):
            mine = [key for key in keys if key[3:] == (method, budget)]
            cells = [layout.named(src.study, "methods", method), layout.budget(src, mine)]
            for length in lengths:
                for column in columns:
                    found = means.get((length, method, budget, column.metric), float("nan"))
                    cells.append(latex.metric(column.metric, found))
            rows.append(Row(Latex(""), cells))
        yield from layout.floats(rows, lengths, columns, caption)


def _timed(src: Source, keys: list[tuple]) -> list[str]:
    """Tasks whose times are those of a prompt and an answer.

    Perplexity reads half its tokens through the bounded cache, so its times are another thing; a
    translation that waits for its source has none.
    """
    kinds = {cell.task: cell.kind for cell in src.study.cells}
    timed = [t for t in dict.fromkeys(key[1] for key in keys) if kinds[t] != "streaming"]
    return [t for t in timed if kinds[t] != "perplexity"] or timed


def _caption(src: Source, experiment: dict, machine: str, keys: list[tuple]) -> str:
    tasks = dict.fromkeys(key[1] for key in keys)
    titles = latex.listing(latex.title(src.study, "tasks", task) for task in tasks)
    return (
        rf"{layout.experiment_title(experiment)}. "
        rf"{latex.title(src.study, 'models', keys[0][0])}: cost, mean over the tasks "
        rf"\emph{{{titles}}}. {layout.sample_note(src, keys)} Cache: storage allocated. Measured "
        rf"on {latex.escape(machine)} (\cref{{tab:provenance}}); compare times within this table "
        "only."
    )


def _of_others(columns: list[Column]) -> str:
    """What is said where caches of others stand beside ours."""
    peaks = " and of the device" if any(c.metric == "peak_cuda_bytes" for c in columns) else ""
    return (
        r" \emph{Claimed} is what can be seen of a cache of kvpress, which may mask the rest and "
        rf"hold it; ours hold what they claim. Peaks are of the process{peaks}."
    )
