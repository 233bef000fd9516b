"""What methods cost, as a Markdown table: of a published study, where times were taken."""

from pathlib import Path

import pandas as pd

from kvbudget.site import plain
from kvbudget.site.markdown import ABSENT, axis, cells_of, named, ruled, tables_of

_MIB = 2**20
#: Metrics, what they are called, and their unit in that of the record.
_COLUMNS = {
    "prefill_s": ("reading (s)", 1, 2),
    "decode_ms_per_token": ("a step (ms)", 1, 0),
    "cache_bytes_allocated": ("cache (MiB)", _MIB, 1),
    "peak_rss_bytes": ("peak of the process (MiB)", _MIB, 0),
}
_PLACE = ["model", "task", "length", "machine"]


def of_experiment(name: str, experiment: str, root: Path) -> str:
    """Of one experiment of a published study, a table for each place where times were taken."""
    study, tables = tables_of(name, root)
    found = named(study, experiment)
    cells = cells_of(study, tables["cells"], found)
    order = pd.Categorical(cells["method"], found["methods"])
    costs = cells.assign(method=order).pivot_table(
        "value", [*_PLACE, "method", "budget"], "metric", sort=False, observed=True
    )
    costs = costs.reindex(columns=[*_COLUMNS]).dropna(subset="prefill_s").reset_index()
    parts = []
    for place, rows in costs.sort_values("method").groupby(_PLACE, sort=False):
        lines = [["method", "budget", *(title for title, _, _ in _COLUMNS.values())]]
        for _, row in rows.iterrows():
            title = plain.typeset(study.title("methods", row["method"]))
            lines.append([title, axis(study, "budget", row["budget"]), *_told(row)])
        where = [axis(study, *each) for each in zip(_PLACE[:3], place[:3], strict=True)]
        parts.append(f"{', '.join(where)}, on {plain.typeset(place[3])}:\n\n{ruled(lines)}")
    return "\n\n".join(parts) or "No times were taken."


def _told(row: pd.Series) -> list[str]:
    return [
        ABSENT if pd.isna(row[name]) else f"{row[name] / unit:.{digits}f}"
        for name, (_, unit, digits) in _COLUMNS.items()
    ]
