"""Quality at equal bytes that are really there, where caches of others stand beside ours."""

from collections.abc import Iterator

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import INTERVAL, Column, Row
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES, FULL

COLUMNS = (
    Column("allocated", Latex("MiB")),
    Column("kept", Latex("kept")),
    Column("score", Latex("score"), INTERVAL),
    Column("nll", Latex("NLL"), INTERVAL),
)


def floats(src: Source, experiment: dict, model: str, keys: list[tuple]) -> Iterator[dict]:
    """Floats of the experiment's cells of one model, by as many lengths as fit side by side.

    Only caches of others hold more than they plan, so an experiment without any has none.
    """
    held = _by_level(src)
    if not layout.others(src.study, keys):
        return
    keys = [key for key in keys if key[4] != FULL]
    caption = (
        rf"{layout.experiment_title(experiment)}. {latex.title(src.study, 'models', model)}: "
        r"quality at equal bytes that are really allocated. At the bytes of a budget each method "
        r"stands with the largest of its caches that fit into them, positions and the like aside; "
        r"a dash: none does, as it masks what it evicts and holds it all the same. "
        rf"{layout.sample_note(src, keys)} In brackets: 95\% intervals over contexts."
    )
    for lengths in layout.by_width(sorted({key[2] for key in keys}), list(COLUMNS)):
        rows = []
        for task in dict.fromkeys(key[1] for key in keys):
            mine = [key for key in keys if key[1] == task]
            for method, level in layout.method_budget_rows(src.study, mine):
                found = [held.get((model, task, length, method, level), {}) for length in lengths]
                cells = [_cell(each.get(c.metric), c.metric) for each in found for c in COLUMNS]
                named = layout.named(src.study, "methods", method)
                group = latex.title(src.study, "tasks", task)
                rows.append(Row(group, [named, latex.budget(level), *cells]))
        yield from layout.floats(rows, lengths, list(COLUMNS), caption)


def _by_level(src: Source) -> dict[tuple, dict[str, dict]]:
    """Rows of held.csv by (model, task, length, method, level), then by column of the table."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in src.table("held").rename(columns={"budget": "at"}).to_dict("records"):
        key = tuple(row["level" if name == "budget" else name] for name in AXES)
        found.setdefault(key, {"allocated": row, "kept": row})[row["metric"]] = row
    return found


def _cell(row: dict | None, column: str) -> Latex:
    if row is None:
        return Latex(latex.DASH)
    if column == "allocated":
        return latex.metric("cache_bytes_allocated", row["allocated"])
    if column == "kept":
        return Latex(rf"{100 * row['kept']:.0f}\%")
    return layout.with_interval(row["value"], row["ci_low"], row["ci_high"])
