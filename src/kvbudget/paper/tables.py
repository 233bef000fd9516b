"""The paper's tables: one file an experiment, statistics, provenance, and all.tex."""

import argparse
from pathlib import Path

import pandas as pd

from kvbudget.errors import run_cli
from kvbudget.paper import latex, layout, source
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL

QUALITY = {
    "score": "score",
    "nll": "NLL",
    "agreement": "agreement",
    "bleu": "BLEU",
    "al": "AL",
    "laal": "LAAL",
}
#: Metrics that are printed without an interval: of a corpus, or nearly the same in every sample.
PLAIN = ("bleu", "al", "laal")
COSTS = {
    "cache_bytes_allocated": "cache (MiB)",
    "prefill_s": "prefill (s)",
    "decode_ms_per_token": "decode (ms/token)",
}


#: What stands for the task where all are taken together.
_TOGETHER = "all headline tasks"


def experiment_table(src: Source, experiment: dict) -> str:
    """LaTeX of one experiment: a float of quality and one of cost for each model."""
    keys = layout.experiment_cells(src.study, experiment)
    floats = []
    for model in dict.fromkeys(key[0] for key in keys):
        mine = [key for key in keys if key[0] == model]
        lengths = sorted({key[2] for key in mine})
        for columns in layout.chunks(lengths, layout.LENGTHS_A_FLOAT):
            floats += _quality(src, experiment, model, columns, mine)
        for columns in layout.chunks(lengths, layout.LENGTHS_A_FLOAT):
            floats += _cost(src, experiment, model, columns, mine)
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:{experiment['name']}-{number}"
    return latex.render(
        "experiment.tex.j2",
        notes=_notes(src, "cells", "missing"),
        floats=floats,
        name=experiment["name"],
    )


def _quality(src: Source, experiment: dict, model: str, lengths: list, keys: list) -> list[dict]:
    study = src.study
    table = src.cells.set_index(["model", "task", "length", "method", "budget", "metric"])
    values = table[["value", "ci_low", "ci_high"]].to_dict("index")
    metrics = [
        (name, title)
        for name, title in QUALITY.items()
        if any((*key, name) in values for key in keys)
    ]
    rows = []
    for task in dict.fromkeys(key[1] for key in keys):
        mine = [key for key in keys if key[1] == task]
        for method, budget in layout.method_budget_rows(study, mine):
            cells = [latex.escape(study.title("methods", method)), latex.budget(budget)]
            for length in lengths:
                for name, _ in metrics:
                    found = values.get((model, task, length, method, budget, name))
                    if not found:
                        cells.append(Latex(latex.DASH))
                    elif name in PLAIN:
                        cells.append(latex.decimal(found["value"]))
                    else:
                        cells.append(layout.with_interval(*found.values()))
            rows.append(Row(study.title("tasks", task), cells))
    caption = (
        rf"{_experiment_title(experiment)}. {latex.escape(study.title('models', model))}: "
        r"quality at equal bytes. "
        rf"{_sample_note(src, keys)} In brackets: 95\% bootstrap interval "
        r"over contexts. "
        r"Higher scores and lower NLL are better." + _notes_on_rows(src, keys)
    )
    if any(name == "laal" for name, _ in metrics):
        caption += _streaming_note(src, model)
    return _floats(rows, lengths, [title for _, title in metrics], caption)


def _cost(src: Source, experiment: dict, model: str, lengths: list, keys: list) -> list[dict]:
    study = src.study
    # Perplexity reads half its tokens through the bounded cache, so its times are another thing;
    # a translation that waits for its source has none.
    kinds = {cell.task: cell.kind for cell in study.cells}
    timed = [t for t in dict.fromkeys(key[1] for key in keys) if kinds[t] != "streaming"]
    tasks = [t for t in timed if kinds[t] != "perplexity"] or timed
    if not tasks:
        return []
    part = src.cells[(src.cells["model"] == model) & src.cells["task"].isin(tasks)]
    means = part.groupby(["length", "method", "budget", "metric"])["value"].mean().to_dict()
    names = [n for n in COSTS if any((*k[2:], n) in means for k in keys)]
    rows = []
    mine = [key for key in keys if key[1] in tasks]
    for method, budget in layout.method_budget_rows(study, mine):
        cells = [latex.escape(study.title("methods", method)), latex.budget(budget)]
        for length in lengths:
            for name in names:
                found = means.get((length, method, budget, name), float("nan"))
                cells.append(latex.metric(name, found))
        rows.append(Row("", cells))
    titles = latex.listing(study.title("tasks", task) for task in tasks)
    caption = (
        rf"{_experiment_title(experiment)}. {latex.escape(study.title('models', model))}: "
        rf"cost, mean over the tasks \emph{{{titles}}}. "
        rf"{_sample_note(src, mine)} Cache: storage allocated. Times are of the machine in "
        r"\cref{tab:provenance}; compare them within this table only."
    )
    return _floats(rows, lengths, [COSTS[name] for name in names], caption)


def _streaming_note(src: Source, model: str) -> str:
    target = src.cells[
        (src.cells["metric"] == "cache_bytes_target") & (src.cells["model"] == model)
    ]
    mebibytes = latex.metric("cache_bytes_target", target["value"].mean())
    return (
        r" Translations: wait-\(k\) over words, each method's budget for the source alone; the"
        r" target is kept whole, apart and alike for all methods,"
        rf" {mebibytes} MiB in the mean. NLL is of the reference, each word given what is read by"
        r" then; agreement is the share of its tokens in whose place the method would have written"
        r" what the full cache would. BLEU is of the model's own greedy translations of all"
        r" passages; AL and LAAL are their lagging in source words, with the reference's length."
    )


def _floats(rows: list[Row], lengths: list, metrics: list[str], caption: str) -> list[dict]:
    """Split rows over floats; a heading is repeated where its rows go on."""
    pieces = list(layout.chunks(rows, layout.ROWS_A_FLOAT))
    return [
        {
            "wide": len(lengths) * len(metrics) > 3,
            "rows": piece,
            "lengths": [f"{length:,} tokens" for length in lengths],
            "metrics": metrics,
            "caption": Latex(caption + (" (Continued.)" if number else "")),
        }
        for number, piece in enumerate(pieces)
    ]


def _experiment_title(experiment: dict) -> Latex:
    return latex.escape(experiment.get("title") or experiment["name"])


def _sample_note(src: Source, keys: list) -> Latex:
    index = pd.MultiIndex.from_tuples(keys)
    axes = ["model", "task", "length", "method", "budget"]
    part = src.cells.set_index(axes)
    part = part[part.index.isin(index)]
    samples, contexts = sorted(set(part["n_samples"])), sorted(set(part["n_contexts"]))
    return Latex(rf"\(n\) = {_span(samples)} samples on {_span(contexts)} contexts a cell.")


def _span(values: list[int]) -> str:
    if not values:
        return "0"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _notes_on_rows(src: Source, keys: list) -> str:
    methods = src.study.config["methods"]
    chunked = [m for m in dict.fromkeys(k[3] for k in keys) if methods[m].get("prefill_chunk")]
    note = ""
    if chunked:
        titles = latex.listing(src.study.title("methods", m) for m in chunked)
        note += f" Prefilled in chunks, unlike the rest: {titles}."
    weak = _weak_places(src, keys)
    if weak:
        named = latex.listing(
            latex.escape(f"{src.study.title('tasks', task)} ({_spoken(lengths)})")
            for task, lengths in weak.items()
        )
        note += f" The full cache scores below one half, so there is no headline, in {named}."
    return note


def _weak_places(src: Source, keys: list) -> dict[str, list[int]]:
    """Tasks that the full cache fails, and at which lengths, among cells of one model."""
    mine = {key[:3] for key in keys}
    weak: dict[str, list[int]] = {}
    for place in src.places.query("not headline").itertuples():
        if (place.model, place.task, place.length) in mine:
            weak.setdefault(place.task, []).append(place.length)
    return weak


def _spoken(lengths: list[int]) -> str:
    return ", ".join(f"{length:,}" for length in sorted(lengths))


def statistics_table(src: Source) -> str:
    """LaTeX of the paired comparisons of our method, and of its variants with it."""
    ours = src.study.ours
    frame = src.comparisons
    against = frame[(frame["method"] == ours) & frame["kind"].isin(["full", "baseline"])]
    variants = frame[frame["kind"] == "ablation"]
    pooled = src.table("pooled").assign(task=_TOGETHER, headline=True)
    pooled = pooled.rename(columns={"places": "length"})
    pooled = pooled[(pooled["method"] == ours) & pooled["kind"].isin(["full", "baseline"])]
    title = latex.escape(src.study.title("methods", ours)) if ours else ""
    common = (
        r" Differences are paired by context, with 95\% bootstrap intervals in brackets, \(d\) is "
        r"the difference over its standard deviation, and \(p\) that of a paired permutation test "
        r"after Holm's correction over all comparisons of the same kind and metric, the pooled "
        r"ones by themselves. "
        rf"\(n\) = {_span(sorted(set(frame['n_contexts'])))} contexts. "
        r"\(\dagger\): the full cache scores below one half, so the row is no headline."
    )
    floats = _statistics(
        src,
        pooled,
        "reference",
        rf"{title} minus each reference, over all headline tasks and lengths (places) together; "
        rf"each context counts once.{common}",
        place="places",
    )
    floats += _statistics(src, against, "reference", rf"{title} minus each reference.{common}")
    floats += _statistics(src, variants, "method", rf"Each variant minus {title}.{common}")
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:statistics-{number}"
    notes = _notes(src, "comparisons", "pooled")
    return latex.render("statistics.tex.j2", notes=notes, floats=floats)


def _statistics(
    src: Source, frame: pd.DataFrame, named: str, caption: str, place: str = "tokens"
) -> list[dict]:
    study = src.study
    rows = []
    axes = ["model", "task", "length", "budget", named]
    for values, group in frame.groupby(axes, sort=False):
        model, task, length, budget, method = values
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        mark = Latex("" if group["headline"].all() else r"\(^\dagger\)")
        cells = [
            Latex(latex.escape(study.title("tasks", task)) + mark),
            Latex(f"{length:,}"),
            latex.budget(budget),
            latex.escape(study.title("methods", method)),
        ]
        for metric in ("score", "nll"):
            row = by_metric.get(metric)
            if row is None:
                cells += [Latex(latex.DASH)] * 3
                continue
            cells.append(
                layout.with_interval(row["difference"], row["ci_low"], row["ci_high"], signed=True)
            )
            cells += [latex.signed(row["effect"]), latex.decimal(row["p_holm"], 3)]
        rows.append(Row(study.title("models", model), cells))
    head = {"reference": "reference", "method": "variant"}[named]
    return [
        {
            "rows": piece,
            "head": head,
            "place": place,
            "caption": Latex(caption + (" (Continued.)" if i else "")),
        }
        for i, piece in enumerate(layout.chunks(rows, layout.ROWS_A_FLOAT))
    ]


def provenance_table(src: Source) -> str:
    """LaTeX of what was measured and with what."""
    models = src.table("models").to_dict("records")
    items = src.table("provenance").to_dict("records")
    return latex.render(
        "provenance.tex.j2",
        notes=_notes(src, "models", "provenance", "code_digests"),
        models=models,
        items=items,
        codes=len(set(src.table("code_digests")["code"])),
        cells=len(src.table("code_digests")),
        wrap=lambda text, n=16: Latex(
            r"\newline ".join(text[i : i + n] for i in range(0, min(len(text), 64), n))
        ),
    )


def index(src: Source) -> str:
    """all.tex: macros that bring in the tables and describe the experiments."""
    study = src.study
    rows = []
    for experiment in study.experiments:
        keys = layout.experiment_cells(study, experiment)
        budgets = sorted({k[4] for k in keys if k[4] != FULL}, key=layout.budget_order)
        rows.append(
            {
                "name": experiment["name"],
                "title": experiment.get("title") or experiment["name"],
                "label": f"tab:{experiment['name']}-1",
                "models": latex.listing(
                    study.title("models", m) for m in dict.fromkeys(k[0] for k in keys)
                ),
                "tasks": latex.listing(
                    study.title("tasks", t) for t in dict.fromkeys(k[1] for k in keys)
                ),
                "lengths": latex.listing(f"{n:,}" for n in sorted({k[2] for k in keys})),
                "methods": latex.listing(
                    study.title("methods", m) for m in study.methods if m in {k[3] for k in keys}
                ),
                "budgets": latex.listing(latex.budget(b) for b in budgets),
            }
        )
    return latex.render("all.tex.j2", experiments=rows)


def _notes(src: Source, *tables: str) -> Latex:
    return Latex("\n".join(src.notes(*tables)))


def write(src: Source, out: Path) -> None:
    """Write all tables into `out`, and remove those of a study that was rendered before."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {e["name"]: experiment_table(src, e) for e in src.study.experiments}
    texts |= {
        "statistics": statistics_table(src),
        "provenance": provenance_table(src),
        "all": index(src),
    }
    for name, text in texts.items():
        (out / f"{name}.tex").write_text(text, encoding="utf-8")
    for path in out.glob("*.tex"):
        if path.stem not in texts:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="results/{study}/study.json")
    parser.add_argument("--csv", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    write(source.load(args.study, args.csv), args.out)


if __name__ == "__main__":
    run_cli(main)
