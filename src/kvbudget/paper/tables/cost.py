"""Cost of one experiment and model: a row for each method and budget.

Where there are neither times nor peaks there is no table: bytes are those of the budget, and
`kvbudget.paper.phrases.cost` says how nearly.
"""

from collections.abc import Iterator, Sequence

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
#: What is the same on all machines.
BYTES = ("cache_bytes_allocated", "cache_bytes_claimed")
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
    index = pd.MultiIndex.from_frame(frame[list(AXES)])
    frame = frame[index.isin(keys)].assign(key=index[index.isin(keys)])
    others = OF_OTHERS if layout.others(src.study, keys) else ()
    columns = [*COLUMNS[:1], *others, *COLUMNS[1:]]
    moving = {column.metric for column in columns}.difference(BYTES)
    told = frame["key"].isin(set(frame.loc[frame["metric"].isin(moving), "key"]))
    # Times of two machines stand in no table together.
    for _, part in frame[told].groupby("machine", sort=False):
        yield from _of_machine(src, experiment, columns, part)


def _of_machine(
    src: Source, experiment: dict, columns: Sequence[Column], part: pd.DataFrame
) -> Iterator[dict]:
    """Tables of cells of one model that were measured on one machine."""
    keys = list(dict.fromkeys(part["key"]))
    means = part.groupby(["length", "method", "budget", "metric"])["value"].mean().to_dict()
    columns = [c for c in columns if any((*key[2:], c.metric) in means for key in keys)]
    caption = _caption(src, experiment, keys, part["machine"].iloc[0]) + _of_others(columns)
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


def _caption(src: Source, experiment: dict, keys: list[tuple], machine: str) -> str:
    tasks = dict.fromkeys(key[1] for key in keys)
    titles = latex.listing(latex.title(src.study, "tasks", task) for task in tasks)
    return (
        rf"{layout.experiment_title(experiment)}. "
        rf"{latex.title(src.study, 'models', keys[0][0])}: cost"
        rf"{', mean over the tasks' if len(tasks) > 1 else ' on'} \emph{{{titles}}}. "
        rf"{layout.sample_note(src, keys)} Cache: storage allocated. Measured "
        rf"on {latex.escape(machine)} (\cref{{tab:provenance}}); compare times within this table "
        "only."
    )


def _of_others(columns: list[Column]) -> str:
    """What is said where caches of others stand beside ours."""
    if not any(column in OF_OTHERS for column in columns):
        return ""
    peaks = " and of the device" if any(c.metric == "peak_cuda_bytes" for c in columns) else ""
    return (
        r" \emph{Claimed} is what can be seen of a cache of kvpress, which may mask the rest and "
        rf"hold it; ours hold what they claim. Peaks are of the process{peaks}."
    )
