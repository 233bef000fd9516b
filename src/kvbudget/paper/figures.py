"""The paper's figures: vector PDFs, byte for byte the same for the same CSV files."""

import argparse
from pathlib import Path

import matplotlib

from kvbudget.errors import run_cli
from kvbudget.paper import source
from kvbudget.paper.source import Source

matplotlib.use("Agg")  # before pyplot: a job has no display

from matplotlib import pyplot as plt

from kvbudget.paper.plots import (
    allocation,
    heads,
    loss_curves,
    memory,
    quality,
    speed,
    style,
)

FIGURES = {
    "quality": quality,
    "memory": memory,
    "speed": speed,
    "heads": heads,
    "allocation": allocation,
    "loss_curves": loss_curves,
}
METADATA = {"CreationDate": None, "ModDate": None}


def write(src: Source, out: Path) -> None:
    """Write all figures into `out`; one without data says so in words."""
    out.mkdir(parents=True, exist_ok=True)
    style.use()
    for name, module in FIGURES.items():
        figure = module.draw(src) or style.nothing(module.EMPTY)
        figure.savefig(out / f"{name}.pdf", metadata=METADATA)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="results/{study}/study.json")
    parser.add_argument("--csv", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    args = parser.parse_args()
    write(source.load(args.study, args.csv), args.out)


if __name__ == "__main__":
    run_cli(main)
