"""What tables, figures and numbers are made from: a plan and its CSV files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from kvbudget.analysis import schema
from kvbudget.paper.latex import Latex
from kvbudget.study.plan import AXES, FULL, Study, load_study


@dataclass(frozen=True)
class Source:
    """A study and the folder of its CSV files.

    `tables` are those that may be read: what a table or figure is declared to be made from
    (`kvbudget.paper.registry`) is then what it is made from.
    """

    study: Study
    directory: Path
    tables: tuple[str, ...] = tuple(schema.TABLES)

    @cached_property
    def cells(self) -> pd.DataFrame:
        return self.table("cells")

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        return self.table("comparisons")

    @cached_property
    def places(self) -> pd.DataFrame:
        """Where the full cache is scored: model, task, length, and whether that is headline."""
        full = self.cells[(self.cells["policy"] == FULL) & (self.cells["metric"] == "score")]
        return full[["model", "task", "length", "headline"]]

    @cached_property
    def failing(self) -> pd.DataFrame:
        """Where the full cache fails: model, task, length."""
        return self.places.loc[~self.places["headline"], ["model", "task", "length"]]

    @cached_property
    def measured(self) -> frozenset[tuple]:
        """Keys of all that is measured."""
        return frozenset(self.cells[list(AXES)].itertuples(index=False, name=None))

    @cached_property
    def all_kept(self) -> frozenset[tuple]:
        """Keys of what evicts nothing at its budget."""
        kept = self.cells[self.cells["all_kept"]]
        return frozenset(kept[list(AXES)].itertuples(index=False, name=None))

    def table(self, name: str) -> pd.DataFrame:
        """One CSV file, typed.

        Raises:
            LookupError: it is not among those declared.
        """
        if name not in self.tables:
            raise LookupError(f"{name}.csv is read but not declared in kvbudget.paper.registry")
        return schema.read(self.directory, name)

    def wide(self) -> pd.DataFrame:
        """One row a method at a place and a budget, one column a metric."""
        axes = [*AXES, "policy", "bits", "all_kept", "machine"]
        return self.cells.pivot(index=axes, columns="metric", values="value").reset_index()

    @property
    def draft(self) -> bool:
        """Whether planned cells are missing."""
        return not self.table("missing").empty

    @property
    def development(self) -> bool:
        """Whether choices were made by these samples, so that they prove nothing."""
        return self.study.config["split"] == "development"

    def notes(self) -> Latex:
        """TeX comments that tie a generated file to the CSV files that it is made from."""
        lines = (f"% source {t}.csv sha256 {schema.digest(self.directory, t)}" for t in self.tables)
        return Latex("\n".join(lines))


def load(study_file: Path, csv: Path, tables: tuple[str, ...] = tuple(schema.TABLES)) -> Source:
    """Read the plan; CSV files are read when asked for."""
    return Source(load_study(study_file), csv, tables)
