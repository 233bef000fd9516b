"""What a study is and what it ran on: `study/…`, `method/…` and `machine/…`."""

from collections.abc import Iterable, Iterator

import pandas as pd

from kvbudget.paper import budgets, latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import count, devices_of, span
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES, FULL

#: Tasks that the abstract names.
FEW = 3


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Numbers and lists of the plan, and the machine in words."""
    yield from _study(src)
    yield from _method(src)
    yield from _machine(src)


def _study(src: Source) -> Iterator[tuple[str, Latex]]:
    study, cells = src.study, src.cells
    planned = study.cells
    evicted = sorted({c.budget for c in planned if c.budget != FULL}, key=budgets.order)
    yield "study/name", latex.escape(study.name)
    yield "study/cells", latex.decimal(len(src.wide()), 0)
    yield "study/models", _titles(src, "models", (c.model for c in planned))
    yield "study/tasks", _titles(src, "tasks", (c.task for c in planned))
    yield "study/tasks-in-short", _in_short(src, list(dict.fromkeys(c.task for c in planned)))
    yield "study/methods", _titles(src, "methods", study.main_methods)
    yield "study/lengths", latex.listing(f"{n:,}" for n in sorted({c.length for c in planned}))
    yield "study/budgets", latex.listing(latex.budget(budget) for budget in evicted)
    contexts = cells.loc[cells["metric"] == "nll", "n_contexts"]
    yield "study/contexts", Latex(span(contexts.min(), contexts.max(), 0))
    yield "study/samples", Latex(span(cells["n_samples"].min(), cells["n_samples"].max(), 0))
    yield "study/compressed", _compressed({c.kind for c in planned})
    yield "study/seed", latex.decimal(study.seed, 0)
    yield "study/dtype", latex.escape(study.config.get("dtype", ""))
    yield "study/quantised", _quantised(src)


def _titles(src: Source, section: str, keys: Iterable[str]) -> Latex:
    return latex.listing(latex.title(src.study, section, key) for key in dict.fromkeys(keys))


def _in_short(src: Source, tasks: list[str]) -> Latex:
    """Tasks by name, or of many their number."""
    return Latex(f"{len(tasks)} tasks") if len(tasks) > FEW else _titles(src, "tasks", tasks)


def _compressed(kinds: set[str]) -> Latex:
    """What is compressed, and when; a translation has no question."""
    if kinds == {"streaming"}:
        return Latex("sources compressed while they are read and translated")
    return Latex("contexts compressed before any question is known")


def _quantised(src: Source) -> Latex:
    """Which models come from a package, and so from a quantised file."""
    used = dict.fromkeys(cell.model for cell in src.study.cells)
    models = [m for m in used if src.study.config["models"][m].get("source") == "pypi"]
    if not models:
        return Latex("No model of this study went through a quantised file.")
    verb = "was" if len(models) == 1 else "were"
    return Latex(
        f"In this study {_titles(src, 'models', models)} {verb} read from a quantised file and "
        "de-quantised, so the weights are not those of the original release."
    )


def _method(src: Source) -> Iterator[tuple[str, Latex]]:
    ours = src.study.config["methods"].get(src.study.ours, {})
    yield "method/bits", latex.decimal(ours.get("bits", 16), 0)


def _machine(src: Source) -> Iterator[tuple[str, Latex]]:
    items = {r["item"]: r["value"] for r in src.table("provenance").to_dict("records")}
    for name in ("torch", "transformers"):
        yield f"machine/{name}", latex.escape(items.get(name, "unknown"))
    # What measured the records, wherever they are read now: processors, where some had no GPU.
    devices = items.get("device", "cpu").split("; ")
    places = [device for device in devices if device != "cpu"]
    if "cpu" in devices:
        places += items.get("cpu", "unknown processor").split("; ")
    yield "machine/description", latex.listing(map(latex.escape, places))
    yield "machine/pairs", _pairs(src)


def _pairs(src: Source) -> Latex:
    """How many comparisons are of two devices; nothing where none is."""
    devices = devices_of(src)
    frame = src.comparisons[src.comparisons["kind"].eq("baseline") & src.comparisons["headline"]]
    frame = frame.drop_duplicates([*AXES, "reference"])
    mine, theirs = (
        devices.loc[pd.MultiIndex.from_frame(frame[[*AXES[:3], method, "budget"]])].to_numpy()
        for method in ("method", "reference")
    )
    if not (mine != theirs).any():
        return Latex("")
    return Latex(
        f"In {(mine != theirs).sum()} of {count(len(frame), 'headline pair')} of Head-Aware and a "
        "peer the two were measured on different devices. These round otherwise, which on few "
        "contexts moves a mean score by some hundredths."
    )
