"""all.tex: macros that bring in the tables and describe the experiments."""

from kvbudget.paper import budgets, latex, layout
from kvbudget.paper.source import Source
from kvbudget.paper.template import render
from kvbudget.study.plan import FULL, Study


def text(src: Source) -> str:
    """LaTeX of the macros; it follows from the plan alone."""
    rows = [_described(src.study, experiment) for experiment in src.study.experiments]
    return render("all.tex.j2", experiments=rows)


def _described(study: Study, experiment: dict) -> dict:
    keys = layout.experiment_cells(study, experiment)
    evicted = sorted({key[4] for key in keys if key[4] != FULL}, key=budgets.order)
    used = {key[3] for key in keys}

    def titles(section: str, names: list[str]) -> latex.Latex:
        return latex.listing(latex.title(study, section, name) for name in dict.fromkeys(names))

    return {
        "name": experiment["name"],
        "title": layout.experiment_title(experiment),
        "label": f"tab:experiment-{experiment['name']}-1",
        "models": titles("models", [key[0] for key in keys]),
        "tasks": titles("tasks", [key[1] for key in keys]),
        "lengths": latex.listing(f"{length:,}" for length in sorted({key[2] for key in keys})),
        "methods": titles("methods", [method for method in study.methods if method in used]),
        "budgets": latex.listing(latex.budget(budget) for budget in evicted),
    }
