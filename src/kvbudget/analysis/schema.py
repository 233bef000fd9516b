"""The CSV files of a study: their columns, what each means, and typed reading and writing.

This is the data dictionary, and pandera holds every file to it when it is written and when it is
read: columns, types, ranges, and one row a thing. A file always has all its columns, even when it
has no row, so that what reads it never has to ask.
"""

import hashlib
from pathlib import Path

import pandas as pd
from pandera.errors import SchemaErrors
from pandera.pandas import Check, Column, DataFrameSchema

from kvbudget.analysis.metrics import COMPARED, HEADLINE_SCORE
from kvbudget.errors import UserError
from kvbudget.study.standing import ATTESTED, EARLIER, MEASURED


def _text(description: str, *values: str) -> Column:
    checks = Check.isin(values) if values else None
    return Column("str", checks, description=description)


def _count(description: str, least: int = 0) -> Column:
    return Column("int64", Check.ge(least), description=description)


def _number(description: str, *, empty: bool = False) -> Column:
    return Column("float64", nullable=empty, description=description)


def _share(description: str) -> Column:
    return Column("float64", Check.in_range(0, 1), description=description)


def _table(columns: dict[str, Column], key: list[str]) -> DataFrameSchema:
    return DataFrameSchema(columns, strict=True, ordered=True, coerce=True, unique=key)


MODEL = {"model": _text("key of the model in the config")}
AXES = {
    **MODEL,
    "task": _text("name of the task in the config"),
    "length": _count("tokens of the prompt as the model reads it", 1),
}
METHOD = {"method": _text("name of the method in the config")}
BUDGET_CHECK = Check.str_matches(r"^(full|\d+|\d+(\.\d+)?p)$")
BUDGET = {
    "budget": Column(
        "str",
        BUDGET_CHECK,
        description="mean cached tokens per KV head: 20p (20% of the prompt), 256 (tokens) or full",
    )
}
LAYER = {"layer": _count("index of the full-attention layer in the model")}
KV_HEAD = {"kv_head": _count("KV head")}
CLASS = {"class": _text("functional class of the KV head, empty without a calibration")}
FEATURES = {
    "features": _text(
        "what scores are predicted from: keys and values of the group, own ones, or the hidden "
        "state; with kvzap, KVzip+'s scores from the hidden state"
    )
}
BITS = "bits of a stored number: 16, fewer, or keys/values where these differ"
ALL_KEPT = Column("bool", description="the method evicts nothing at this budget")
HEADLINE = Column(
    "bool",
    description=(
        f"the full cache, chance taken off, scores at least {HEADLINE_SCORE} here, or has no score"
    ),
)
SEEDS = {
    "seed_low": _number("the least over seeds of the calibration; empty for one seed", empty=True),
    "seed_high": _number("the most over seeds of the calibration; empty for one seed", empty=True),
}
INTERVAL = {
    "ci_low": _number("95% interval over contexts; empty under 6 contexts", empty=True),
    "ci_high": _number("95% interval over contexts; empty under 6 contexts", empty=True),
}
PAIR = {
    "experiment": _text("that sets the two side by side"),
    **BUDGET,
    "method": _text("the method compared"),
    "bits": _text(BITS),
    "reference": _text("what it is compared with"),
    "reference_bits": _text(f"of the reference: {BITS}"),
    "kind": _text(
        "full (against the full cache), baseline, or ablation", "full", "baseline", "ablation"
    ),
    "metric": _text("score or choice (higher is better) or nll (lower is better)", *COMPARED),
}
ORDER = {"order": _count("which of the experiment's orders of methods", 1)}
NEIGHBOURS = {name: column for name, column in PAIR.items() if name != "kind"}
VERDICTS = ("better", "worse", "unclear")
TEST = {
    "value": _number("mean over contexts of the method"),
    "reference_value": _number("mean over contexts of the reference"),
    "difference": _number("method minus reference, paired by context"),
    **INTERVAL,
    **SEEDS,
    "effect": _number(
        "Cohen's d of pairs: difference over its standard deviation; empty if there is none",
        empty=True,
    ),
    "p": _share("two-sided paired permutation test over contexts"),
    "family": _count("comparisons within which p is corrected", 1),
    "p_holm": _share(
        "p after Holm's correction within its family (the config's `families`; of places taken"
        " together, all references of a kind)"
    ),
    "n_contexts": _count("pairs", 1),
    "detectable": _number(
        "difference that so many contexts show with 80% power (paired t test at 5% over the size"
        " of the family) at the variance observed; empty if there is none",
        empty=True,
    ),
    "verdict": _text("better or worse where p_holm is under 0.05, else unclear", *VERDICTS),
    "all_kept": ALL_KEPT,
}

TABLES: dict[str, DataFrameSchema] = {
    "cells": _table(
        {
            **AXES,
            **METHOD,
            **BUDGET,
            "policy": _text("eviction policy behind the method"),
            "bits": _text(BITS),
            "all_kept": ALL_KEPT,
            "headline": HEADLINE,
            "machine": _text("device and machine: times of two never stand in one ratio"),
            "metric": _text(
                "score, nll, kept (share of the context's tokens that a head keeps in the mean), or"
                " a cost in bytes, seconds, milliseconds or tokens (cache_bytes_claimed: of what"
                " can be seen of a cache of others, which may hold more; cache_tokens_on_top and"
                " cache_bytes_on_top: of a question and its answer, where the budget is the"
                " context's alone); where one of several needles is asked for also any (the answer"
                " is some needle of the context), given_any (score of those answers), choice (the"
                " asked needle has the highest likelihood) and chance (of score and choice); of"
                " streamed translations also bleu (0 to 100), al and laal (lagging in words) and"
                " agreement (share of the reference's tokens for which the method, given all"
                " before, would write what the full cache would)"
            ),
            "value": _number(
                "mean over contexts of the mean over their questions; bleu of all contexts together"
            ),
            **INTERVAL,
            "seeds": _count("seeds of the calibration over which it is the mean", 1),
            **SEEDS,
            "n_samples": _count("questions measured", 1),
            "n_contexts": _count("independent contexts, the clusters of the statistics", 1),
        },
        [*AXES, *METHOD, *BUDGET, "metric"],
    ),
    "comparisons": _table({**AXES, **PAIR, **TEST, "headline": HEADLINE}, [*AXES, *PAIR]),
    "pooled": _table(
        {
            **MODEL,
            **PAIR,
            "places": _count("headline tasks and lengths that are pooled", 1),
            **TEST,
        },
        [*MODEL, *PAIR],
    ),
    "orders": _table(
        {
            **ORDER,
            **AXES,
            **NEIGHBOURS,
            **TEST,
            "verdict": _text(
                "better (the order holds) or worse (its contrary does) where p_holm is under 0.05,"
                " else unclear",
                *VERDICTS,
            ),
            "headline": HEADLINE,
        },
        [*ORDER, *AXES, *NEIGHBOURS],
    ),
    "held": _table(
        {
            **AXES,
            "level": Column("str", BUDGET_CHECK, description="budget whose bytes may be held"),
            **METHOD,
            "bits": _text(BITS),
            **BUDGET,
            "planned": _number("bytes of the level"),
            "allocated": _number("bytes that the method holds at its budget"),
            "kept": _share("share of the context's tokens that a head keeps in the mean"),
            "metric": _text("score, choice or nll", *COMPARED),
            "value": _number("mean over contexts"),
            **INTERVAL,
        },
        [*AXES, "level", *METHOD, "metric"],
    ),
    "heads": _table(
        {
            **MODEL,
            **LAYER,
            "query_head": _count("query head"),
            "kv_head": _count("KV head that serves it"),
            **CLASS,
            "retrieval": _number("retrieval score"),
            "induction": _number("induction score"),
            "local": _number("attention mass in the local window"),
            "sink": _number("attention mass on the sinks"),
            "previous": _number("attention to the previous token"),
        },
        [*MODEL, *LAYER, "query_head"],
    ),
    "allocation": _table(
        {
            **AXES,
            **METHOD,
            **BUDGET,
            "all_kept": ALL_KEPT,
            **LAYER,
            **KV_HEAD,
            **CLASS,
            "slots": Column("float64", Check.ge(0), description="mean tokens kept"),
            "share": _number("slots over the mean of all KV heads of the cell"),
        },
        [*AXES, *METHOD, *BUDGET, *LAYER, *KV_HEAD],
    ),
    "loss_curves": _table(
        {
            **MODEL,
            "measure": _text("what is lost: answer, output (norm) or mass (of attention)"),
            "rule": _text("scoring rule that chooses what to keep"),
            **LAYER,
            **KV_HEAD,
            **CLASS,
            "share": _share("share of tokens kept"),
            "loss": _number("nats of the answer's likelihood, else the lost fraction"),
        },
        [*MODEL, "measure", "rule", *LAYER, *KV_HEAD, "share"],
    ),
    "stability": _table(
        {
            **MODEL,
            "signal": _text("score of query heads, or mean loss of KV heads"),
            "correlation": Column(
                "float64",
                Check.in_range(-1, 1),
                description="Spearman's, over heads, between two halves of the calibration",
            ),
        },
        [*MODEL, "signal"],
    ),
    "scorer": _table(
        {
            **MODEL,
            **FEATURES,
            "share": _share("share of tokens kept, of all heads of all layers together"),
            "kept": _share(
                "part of all scores that the tokens predicted best have, over what the truly best"
                " would have, on contexts that the scorer was not fitted on"
            ),
        },
        [*MODEL, *FEATURES, "share"],
    ),
    "ranks": _table(
        {
            **MODEL,
            **FEATURES,
            **LAYER,
            **KV_HEAD,
            "correlation": Column(
                "float64",
                Check.in_range(-1, 1),
                description=(
                    "Spearman's, over tokens, between predicted and true scores, on contexts that"
                    " the scorer was not fitted on"
                ),
            ),
        },
        [*MODEL, *FEATURES, *LAYER, *KV_HEAD],
    ),
    "models": _table(
        {
            **MODEL,
            "title": _text("name in print"),
            "source": _text("where the weights come from"),
            "sha256": _text("digest over all file hashes"),
            "dtype": _text("number format of the study"),
            "layers": _count("layers"),
            "query_heads": _count("query heads a layer"),
            "kv_heads": _count("KV heads a layer"),
            "head_dim": _count("dimension of a head"),
            "context": _count("longest prompt the model can read, in tokens"),
        },
        [*MODEL],
    ),
    "provenance": _table(
        {
            "item": _text("what: a library, the device, threads, a commit"),
            "value": _text("its value in all cells, or the several values"),
        },
        ["item"],
    ),
    "code_digests": _table(
        {
            "path": _text("path of the cell's record"),
            "policy": _text("eviction policy"),
            "kind": _text("kind of task"),
            "code": _text("digest of the code that measured the cell"),
            "standing": _text(
                "to today's code: measured by it, attested (measured by earlier code, and some"
                " contexts computed again by today's were the same), or earlier code",
                MEASURED,
                ATTESTED,
                EARLIER,
            ),
            "modules": _text("that have changed since it was measured; empty if none has"),
            "libraries": _text("that have; empty if none has"),
        },
        ["path"],
    ),
    "missing": _table(
        {"path": _text("a planned cell without a record; only a draft has any")}, ["path"]
    ),
}


#: Types of columns in words.
WORDS = {"bool": "True, False", "int64": "integer", "float64": "number", "string": "text"}


def dictionary() -> str:
    """The data dictionary as Markdown, for whoever opens the folder of the CSV files."""
    lines = ["# What the columns mean", "", "Generated from `kvbudget.analysis.schema`.", ""]
    for name, table in TABLES.items():
        lines += [f"## {name}.csv", "", "One row per " + ", ".join(table.unique) + ".", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        for column, each in table.columns.items():
            kind = WORDS[str(each.dtype).partition("[")[0]]
            lines.append(f"| {column} | {kind} | {each.description} |")
        lines.append("")
    return "\n".join(lines)


def write(frame: pd.DataFrame, table: str, directory: Path) -> None:
    """Write `{directory}/{table}.csv`, columns in the dictionary's order.

    Raises:
        UserError: the frame is not what the dictionary says.
    """
    columns = list(TABLES[table].columns)
    frame = pd.DataFrame(columns=columns) if frame.empty else frame[columns]
    path = directory / f"{table}.csv"
    _valid(frame, table, path).to_csv(path, index=False, lineterminator="\n")


def read(directory: Path, table: str) -> pd.DataFrame:
    """Read `{directory}/{table}.csv` with typed columns.

    Raises:
        UserError: the file is absent or is not what the dictionary says.
    """
    path = directory / f"{table}.csv"
    if not path.exists():
        raise UserError(
            f"{path} is missing; run `snakemake --cores 1 --resources gpu=1` to make it"
        )
    # Text stays text: a method may be called `null`, a budget is `256`. Where pyarrow is installed,
    # pandas has another type of text.
    columns = TABLES[table].columns.items()
    types = {name: "str" for name, column in columns if str(column.dtype).startswith("str")}
    frame = pd.read_csv(path, dtype=types, keep_default_na=False)
    return _valid(frame.replace({c: {"": None} for c in frame if c not in types}), table, path)


def digest(directory: Path, table: str) -> str:
    """sha256 of one CSV file, as noted in everything made from it."""
    return hashlib.sha256((directory / f"{table}.csv").read_bytes()).hexdigest()


def _valid(frame: pd.DataFrame, table: str, path: Path) -> pd.DataFrame:
    try:
        return TABLES[table].validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.drop_duplicates(["column", "check"]).to_dict("records")
        reasons = [f"{c['column']} fails {c['check']} ({c['failure_case']!r})" for c in cases]
        raise UserError(
            f"{path}: {'; '.join(reasons)}; delete it and run the command again"
        ) from None
