"""The CSV files of a study: their columns, what each means, and typed reading and writing.

This is the data dictionary. A file always has all its columns, even when it has no row, so that
what reads it never has to ask.
"""

import hashlib
from pathlib import Path

import pandas as pd

from kvbudget.errors import UserError

AXES = {
    "model": ("str", "key of the model in the config"),
    "task": ("str", "name of the task in the config"),
    "length": ("int64", "tokens of the prompt as the model reads it"),
}
_BUDGET = ("str", "mean cached tokens per KV head: 20p = 20% of the prompt, 256 = tokens, or full")

TABLES: dict[str, dict[str, tuple[str, str]]] = {
    "cells": {
        **AXES,
        "method": ("str", "name of the method in the config"),
        "budget": _BUDGET,
        "policy": ("str", "eviction policy behind the method"),
        "metric": ("str", "score, nll, or a cost in bytes, seconds, milliseconds or tokens"),
        "value": ("float64", "mean over contexts of the mean over their questions"),
        "ci_low": ("float64", "95% bootstrap interval over contexts; empty for one context"),
        "ci_high": ("float64", "95% bootstrap interval over contexts; empty for one context"),
        "n_samples": ("int64", "questions measured"),
        "n_contexts": ("int64", "independent contexts, the clusters of the statistics"),
    },
    "comparisons": {
        **AXES,
        "budget": _BUDGET,
        "method": ("str", "the method compared"),
        "reference": ("str", "what it is compared with"),
        "kind": ("str", "full (against the full cache), baseline, or ablation"),
        "metric": ("str", "score (higher is better) or nll (lower is better)"),
        "difference": ("float64", "method minus reference, paired by context"),
        "ci_low": ("float64", "95% bootstrap interval of the difference over contexts"),
        "ci_high": ("float64", "95% bootstrap interval of the difference over contexts"),
        "p": ("float64", "two-sided paired permutation test over contexts"),
        "p_holm": ("float64", "p after Holm's correction within the same kind and metric"),
        "n_contexts": ("int64", "pairs"),
        "headline": ("bool", "the full cache scores at least 0.5 here, or there is no score"),
        "verdict": (
            "str",
            "better, worse or unclear: the interval holds zero, or under 6 contexts",
        ),
    },
    "heads": {
        "model": AXES["model"],
        "layer": ("int64", "index of the full-attention layer in the model"),
        "query_head": ("int64", "query head"),
        "kv_head": ("int64", "KV head that serves it"),
        "class": ("str", "functional class of the KV head"),
        "retrieval": ("float64", "retrieval score"),
        "induction": ("float64", "induction score"),
        "local": ("float64", "attention mass in the local window"),
        "sink": ("float64", "attention mass on the sinks"),
        "previous": ("float64", "attention to the previous token"),
    },
    "allocation": {
        **AXES,
        "method": ("str", "name of the method in the config"),
        "budget": _BUDGET,
        "layer": ("int64", "index of the full-attention layer in the model"),
        "kv_head": ("int64", "KV head"),
        "class": ("str", "functional class of the KV head, empty without a profile"),
        "slots": ("float64", "mean tokens kept"),
        "share": ("float64", "slots over the mean of all KV heads of the cell"),
    },
    "loss_curves": {
        "model": AXES["model"],
        "measure": ("str", "what is lost: attention mass or output norm"),
        "rule": ("str", "scoring rule that chooses what to keep"),
        "layer": ("int64", "index of the full-attention layer in the model"),
        "kv_head": ("int64", "KV head"),
        "class": ("str", "functional class of the KV head"),
        "share": ("float64", "share of tokens kept"),
        "loss": ("float64", "lost fraction, 0 to 1"),
    },
    "models": {
        "model": AXES["model"],
        "title": ("str", "name in print"),
        "source": ("str", "where the weights come from"),
        "sha256": ("str", "digest over all file hashes"),
        "dtype": ("str", "number format of the study"),
        "layers": ("int64", "layers"),
        "query_heads": ("int64", "query heads a layer"),
        "kv_heads": ("int64", "KV heads a layer"),
        "head_dim": ("int64", "dimension of a head"),
        "context": ("int64", "longest prompt the model can read, in tokens"),
    },
    "provenance": {
        "item": ("str", "what: a library, the device, threads, a commit"),
        "value": ("str", "its value in all cells, or the several values"),
    },
    "code_digests": {
        "path": ("str", "path of the cell's record"),
        "policy": ("str", "eviction policy"),
        "kind": ("str", "kind of task"),
        "code": ("str", "digest of the code that measured the cell"),
    },
    "missing": {
        "path": ("str", "a planned cell without a record; only a draft has any"),
    },
}


def write(frame: pd.DataFrame, table: str, directory: Path) -> None:
    """Write `{directory}/{table}.csv`, columns in the dictionary's order."""
    columns = TABLES[table]
    if frame.empty:
        frame = pd.DataFrame(columns=list(columns))
    frame = frame[list(columns)].astype({c: t for c, (t, _) in columns.items()})
    frame.to_csv(directory / f"{table}.csv", index=False, lineterminator="\n")


def read(directory: Path, table: str) -> pd.DataFrame:
    """Read `{directory}/{table}.csv` with typed columns.

    Raises:
        UserError: the file is absent or its columns are not the dictionary's.
    """
    path = directory / f"{table}.csv"
    columns = TABLES[table]
    if not path.exists():
        raise UserError(
            f"{path} is missing; run `snakemake --cores 1 --resources gpu=1` to make it"
        )
    text = [c for c, (t, _) in columns.items() if t == "str"]
    frame = pd.read_csv(
        path,
        dtype={c: t for c, (t, _) in columns.items()},
        keep_default_na=False,
        na_values={c: [""] for c in columns if c not in text},
    )
    if list(frame.columns) != list(columns):
        raise UserError(
            f"{path} has columns {list(frame.columns)}, not {list(columns)}; rebuild it"
        )
    return frame


def digest(directory: Path, table: str) -> str:
    """sha256 of one CSV file, as noted in everything made from it."""
    return hashlib.sha256((directory / f"{table}.csv").read_bytes()).hexdigest()
