"""The page put together: one HTML file with its data, charts, styles and scripts inside."""

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from kvbudget.errors import UserError
from kvbudget.paper import budgets
from kvbudget.paper.source import Source
from kvbudget.site import charts, heads, plain, points
from kvbudget.study.plan import Study, budget_token
from kvbudget.study.standing import EARLIER

#: The CSV files that a page is made from.
CSV = ("cells", "heads", "allocation", "scorer", "code_digests", "missing")
#: Name, title and introduction of the parts with curves.
CURVES = (
    ("quality", "Quality", "How good answers are. Over budget, a dashed line is the full cache."),
    ("memory", "Memory", "Of the cache alone, and of all that runs."),
    ("speed", "Speed", "Times are comparable on one machine only; ratios are within one."),
)
_SCRIPTS = ("curves.js", "heads.js", "text.js")
_TEMPLATES = files("kvbudget.site") / "templates"


def text(src: Source, shade: dict[str, Any] | None, page: Path) -> str:
    """The page.

    Args:
        src: a study with the tables `CSV`.
        shade: what `kvbudget.run.shade` gave of the study; None leaves the text out.
        page: the file that it will be, from which records are linked.

    Raises:
        UserError: the CSV files are of other results than the study's.
    """
    _check(src)
    data = {
        "curves": points.data(src, page),
        "heads": heads.data(src, page),
        "shade": shade and _shaded(src.study, shade),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvbudget.site"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        study=src.study.name,
        warnings=_warnings(src),
        machines=sorted(set(src.cells["machine"])),
        cells=len(data["curves"]["cells"]),
        curves=CURVES,
        links=[(f"{name}.csv", points.link(src.directory / f"{name}.csv", page)) for name in CSV],
        style=_read("page.css"),
        licence=_read("vega.txt"),
        data=_embedded(data),
        charts=_embedded(charts.all_charts()),
        vega=vega(),
        scripts=[_read(name) for name in _SCRIPTS],
    )


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which fetches nothing."""
    major, minor, _ = alt.SCHEMA_VERSION.removeprefix("v").split(".")
    return vl_convert.javascript_bundle(vl_version=f"{major}.{minor}")


def _check(src: Source) -> None:
    planned = {cell.path for cell in src.study.cells}
    other = sorted(set(src.table("code_digests")["path"]) - planned)
    if other:
        raise UserError(
            f"{src.directory} tells of results that study {src.study.name} no longer has, such as "
            f"{other[0]}; make it anew with: {src.study.run([str(src.directory / 'cells.csv')])}"
        )


def _warnings(src: Source) -> list[str]:
    found = []
    if src.draft:
        found.append(f"DRAFT: {len(src.table('missing'))} planned cells are missing.")
    if src.development:
        found.append("Choices were made by these samples: they prove nothing.")
    standings = src.table("code_digests")["standing"]
    if earlier := int((standings == EARLIER).sum()):
        found.append(f"{earlier} of {len(standings)} results were measured by earlier code.")
    return found


def _shaded(study: Study, shade: dict[str, Any]) -> dict[str, Any]:
    """The context with what it is called in words; the paper's own method is shown first."""
    named = [
        each | {"title": plain.typeset(study.title("methods", each["method"]))}
        for each in shade["methods"]
    ]
    model, task = (plain.typeset(study.title(f"{k}s", shade[k])) for k in ("model", "task"))
    about = (
        f"{model}, {task}, {len(shade['tokens']):,} tokens, budget: "
        f"{budgets.text(budget_token(shade['budget']))}. Choose a method by its strip, which runs "
        "from the first token to the last; beside it, the share of tokens that its heads keep."
    )
    keys = [each["method"] for each in named]
    first = keys.index(study.ours) if study.ours in keys else 0
    return shade | {"methods": named, "about": about, "first": first}


def _embedded(value: dict[str, Any]) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    said = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return said.replace("<", r"\u003c")


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
