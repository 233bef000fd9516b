"""Measure one cell: a model, a method, a task, a length and a budget in; one record out."""

import argparse
from pathlib import Path

from kvbudget.cli import of_model
from kvbudget.policies.registry import method
from kvbudget.run.cell import run_cell
from kvbudget.run.job import Cell
from kvbudget.run.peers.cell import run_peer


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    of_model.arguments(parser, "the cell")
    parser.add_argument("--code", required=True, help="digest of the code that it runs")
    parser.add_argument(
        "--identity", required=True, help="digest of all that the result depends on"
    )
    parser.add_argument("--calibration", type=Path, help="of the model's heads")
    parser.add_argument("--prefills", type=Path, help="folder of contexts that were read before")
    parser.add_argument(
        "--own-contexts", type=int, default=1, help="first contexts that are read all the same"
    )


def run(args: argparse.Namespace) -> None:
    """Write the record."""
    measure(Cell(**vars(args)))


def measure(cell: Cell, count: int | None = None) -> None:
    """Write the record of a cell by whatever measures its method, of its first `count` contexts if
    so many are given."""
    run = run_peer if method(cell.spec["method"]["policy"]).elsewhere else run_cell
    run(cell, count)
