r"""numbers.tex: every number of the prose as a macro `\res{key}`; an unknown key stops LaTeX.

Keys of cells are `model/task/length/method/budget/metric`, with `/low`, `/high` and `/n` for the
interval and the contexts; of comparisons `model/task/length/budget/method/vs/reference/metric`
with `/low`, `/high`, `/p` and `/verdict`. Derived keys (`study/…`, `machine/…`, `summary/…`) are
those of `phrases.py`; they exist in every study, so the sections use these.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kvbudget.errors import UserError, run_cli
from kvbudget.paper import latex, phrases, source
from kvbudget.paper.latex import Latex
from kvbudget.paper.source import Source

TABLES = ("cells", "comparisons", "heads", "models", "provenance", "missing")


def cell_numbers(src: Source) -> Iterator[tuple[str, Latex]]:
    """Every metric of every cell."""
    for row in src.cells.to_dict("records"):
        name = row["metric"]
        axes = (row["model"], row["task"], row["length"], row["method"], row["budget"])
        base = latex.key(*axes, name)
        yield base, latex.metric(name, row["value"])
        if not pd.isna(row["ci_low"]):
            yield f"{base}/low", latex.metric(name, row["ci_low"])
            yield f"{base}/high", latex.metric(name, row["ci_high"])
        yield f"{base}/n", latex.decimal(row["n_contexts"], 0)


def comparison_numbers(src: Source) -> Iterator[tuple[str, Latex]]:
    """Every paired difference."""
    for row in src.comparisons.to_dict("records"):
        axes = (row["model"], row["task"], row["length"], row["budget"], row["method"])
        base = latex.key(*axes, "vs", row["reference"], row["metric"])
        yield base, latex.signed(row["difference"])
        yield f"{base}/low", latex.signed(row["ci_low"])
        yield f"{base}/high", latex.signed(row["ci_high"])
        yield f"{base}/p", latex.decimal(row["p_holm"], 3)
        yield f"{base}/verdict", latex.escape(row["verdict"])


def write(src: Source, environment: dict, out: Path) -> None:
    """Write numbers.tex.

    Raises:
        UserError: two numbers have the same key.
    """
    numbers: dict[str, Latex] = {}
    pairs = [*cell_numbers(src), *comparison_numbers(src), *phrases.derived(src, environment)]
    for key, value in pairs:
        if key in numbers:
            raise UserError(f"two numbers have the key {key}; rename a model, task or method")
        numbers[key] = value
    text = latex.render(
        "numbers.tex.j2",
        notes=Latex("\n".join(src.notes(*TABLES))),
        numbers={Latex(key): value for key, value in numbers.items()},
        draft=src.draft,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="results/{study}/study.json")
    parser.add_argument("--csv", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--environment", type=Path, required=True, help="environment.json")
    parser.add_argument("--out", type=Path, required=True, help="numbers.tex")
    args = parser.parse_args()
    try:
        environment = json.loads(args.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {args.environment} ({error}); "
            f"make it with `snakemake --cores 1 {args.environment}`"
        ) from error
    write(source.load(args.study, args.csv), environment, args.out)


if __name__ == "__main__":
    run_cli(main)
