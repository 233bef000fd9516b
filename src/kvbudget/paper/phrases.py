"""Numbers and sentences that every study has, whatever it measured and however it came out.

A sentence that says which way a result went is computed here from comparisons.csv, so the prose
cannot claim what the data do not show. Values are LaTeX.
"""

from collections.abc import Iterator

import pandas as pd

from kvbudget.analysis.statistics import RESAMPLES
from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import budget_order
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL, OURS

METRIC_TITLE = {"score": "score", "nll": "NLL"}
ALPHA = 0.05


def derived(src: Source, environment: dict) -> Iterator[tuple[str, Latex]]:
    """All derived numbers and sentences by key."""
    yield from _study(src)
    yield from _machine(src, environment)
    yield from _verdicts(src)
    yield "summary/short", _short(src)
    yield "summary/full", _against_full(src)
    yield "summary/baselines", _against_baselines(src)
    yield "summary/pooled", _pooled(src)
    yield "summary/losses", _losses(src)
    yield "summary/ablation", _ablation(src)
    yield "summary/headline", _headline_tasks(src)
    yield "summary/power", _power(src)
    yield "summary/memory", _memory(src)
    yield "summary/speed", _speed(src)
    yield "summary/classes", _classes(src)
    yield "summary/stability", _stability(src)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _span(low: float, high: float, digits: int = 2) -> str:
    a, b = latex.decimal(low, digits), latex.decimal(high, digits)
    return a if a == b else f"{a} to {b}"


def _study(src: Source) -> Iterator[tuple[str, Latex]]:
    study, cells = src.study, src.cells
    planned = study.cells
    budgets = {c.budget for c in planned if c.budget != FULL}
    yield "study/name", latex.escape(study.name)
    yield "study/cells", latex.decimal(len(src.wide()), 0)
    yield "study/models", latex.listing(_titles(src, "models", [c.model for c in planned]))
    yield "study/tasks", latex.listing(_titles(src, "tasks", [c.task for c in planned]))
    yield "study/methods", latex.listing(study.title("methods", m) for m in study.main_methods)
    yield "study/baselines", latex.listing(study.title("methods", m) for m in study.baselines)
    yield "study/lengths", latex.listing(f"{n:,}" for n in sorted({c.length for c in planned}))
    yield "study/budgets", latex.listing(latex.budget(b) for b in sorted(budgets, key=budget_order))
    yield "study/contexts", Latex(_span(cells["n_contexts"].min(), cells["n_contexts"].max(), 0))
    yield "study/samples", Latex(_span(cells["n_samples"].min(), cells["n_samples"].max(), 0))
    yield "study/compressed", _compressed({c.kind for c in planned})
    yield "study/seed", latex.decimal(study.seed, 0)
    yield "study/dtype", latex.escape(study.config.get("dtype", ""))
    yield "study/ours", latex.escape(study.title("methods", study.ours) if study.ours else OURS)
    bits = study.config["methods"][study.ours].get("bits", 16) if study.ours else 16
    yield "method/bits", latex.decimal(bits, 0)
    quantised = [k for k, m in study.config["models"].items() if _from_gguf(m)]
    used = dict.fromkeys(c.model for c in planned)
    yield "study/quantised", _quantised(src, [model for model in used if model in quantised])


def _compressed(kinds: set[str]) -> Latex:
    """What is compressed, and when; a translation has no question."""
    if kinds == {"streaming"}:
        return Latex("sources compressed while they are read and translated")
    return Latex("contexts compressed before any question is known")


def _titles(src: Source, section: str, keys: list[str]) -> list[str]:
    return [src.study.title(section, key) for key in dict.fromkeys(keys)]


def _from_gguf(model: dict) -> bool:
    return model.get("source") == "pypi"


def _quantised(src: Source, models: list[str]) -> Latex:
    if not models:
        return Latex("No model of this study went through a quantised file.")
    titles = latex.listing(src.study.title("models", model) for model in models)
    verb = "was" if len(models) == 1 else "were"
    return Latex(
        f"In this study {titles} {verb} read from a quantised file and de-quantised, so the "
        "weights are not those of the original release."
    )


def _machine(src: Source, environment: dict) -> Iterator[tuple[str, Latex]]:
    items = {r["item"]: r["value"] for r in src.table("provenance").to_dict("records")}
    for name in ("device", "threads", "torch", "transformers", "python"):
        yield f"machine/{name}", latex.escape(items.get(name, "unknown"))
    yield "machine/description", _describe_machine(environment)


def _describe_machine(environment: dict) -> Latex:
    """The machine in words, from environment.json."""
    cpu = environment["cpu"]
    parts = [
        latex.escape(cpu["model"] or "an unnamed processor"),
        Latex(_count(cpu["usable"], "CPU")),
        Latex(f"{environment['memory_bytes'] / 2**30:.0f} GiB of memory"),
    ]
    parts += [latex.escape(device["name"]) for device in environment["cuda"]["devices"]]
    return Latex(", ".join(parts))


def _ours(src: Source, kind: str) -> pd.DataFrame:
    frame = src.comparisons
    own = (frame["method"] == src.study.ours) & (frame["kind"] == kind)
    return frame[own & frame["headline"]]


def _tally(frame: pd.DataFrame) -> dict[str, int]:
    counts = frame["verdict"].value_counts().to_dict()
    out = {name: int(counts.get(name, 0)) for name in ("better", "worse", "unclear")}
    return out | {"all": len(frame), "holm": int((frame["p_holm"] < ALPHA).sum())}


def _verdicts(src: Source) -> Iterator[tuple[str, Latex]]:
    for kind in ("full", "baseline"):
        for metric in METRIC_TITLE:
            frame = _ours(src, kind)
            for name, number in _tally(frame[frame["metric"] == metric]).items():
                yield f"summary/{kind}/{metric}/{name}", latex.decimal(number, 0)


def _sentence(frame: pd.DataFrame, metric: str) -> str:
    part = frame[frame["metric"] == metric]
    if part.empty:
        return ""
    t = _tally(part)
    mean = latex.signed(float(part["difference"].mean()))
    return (
        f"in {METRIC_TITLE[metric]} it is better in {t['better']}, worse in {t['worse']} and "
        f"unclear in {t['unclear']} of {_count(t['all'], 'comparison')} "
        f"(mean difference {mean}; {t['holm']} with Holm-corrected "
        rf"\(p<{ALPHA}\))"
    )


NO_OURS = Latex(
    "This study holds no such headline comparison of Head-Aware, so nothing is claimed here."
)


def _against(src: Source, frame: pd.DataFrame, reference: str) -> str:
    part = frame[frame["reference"] == reference]
    sentences = [s for s in (_sentence(part, metric) for metric in METRIC_TITLE) if s]
    if not sentences:
        return ""
    title = latex.escape(src.study.title("methods", reference))
    return f"Against {title}, " + "; ".join(sentences) + "."


def _against_each(src: Source, kind: str) -> Latex:
    frame = _ours(src, kind)
    texts = [_against(src, frame, reference) for reference in dict.fromkeys(frame["reference"])]
    return Latex(" ".join(texts)) if texts else NO_OURS


def _against_full(src: Source) -> Latex:
    return _against_each(src, "full")


def _against_baselines(src: Source) -> Latex:
    return _against_each(src, "baseline")


def _short(src: Source) -> Latex:
    """The result in few words: against all baselines together, and against the full cache."""
    texts = []
    for kind, name in (
        ("baseline", f"with {_baseline_titles(src)}"),
        ("full", "with the full cache"),
    ):
        frame = _ours(src, kind)
        counts = []
        for metric, title in METRIC_TITLE.items():
            t = _tally(frame[frame["metric"] == metric])
            if t["all"]:
                counts.append(
                    f"in {title} better in {t['better']}, worse in {t['worse']} and unclear in "
                    f"{t['unclear']} of {t['all']}"
                )
        if counts:
            texts.append(f"in headline comparisons {name} Head-Aware is {'; '.join(counts)}.")
    if not texts:
        return NO_OURS
    return Latex(" ".join(text[0].upper() + text[1:] for text in texts))


def _baseline_titles(src: Source) -> Latex:
    return latex.listing(src.study.title("methods", m) for m in src.study.baselines)


def _pooled(src: Source) -> Latex:
    """Our method against each reference, all headline tasks and lengths together."""
    frame = src.table("pooled")
    frame = frame[(frame["method"] == src.study.ours) & (frame["kind"] != "ablation")]
    if frame.empty:
        return NO_OURS
    texts = []
    for row in frame.to_dict("records"):
        title = latex.escape(src.study.title("methods", row["reference"]))
        model = latex.escape(src.study.title("models", row["model"]))
        texts.append(
            f"{model} at {latex.budget(row['budget'])} against {title}: "
            f"{latex.signed(row['difference'])} in {METRIC_TITLE[row['metric']]} "
            f"({row['verdict']}, \\(d\\) = {latex.signed(row['effect'])})"
        )
    shown = "; ".join(texts[:12])
    more = f"; and {len(texts) - 12} more in the appendix" if len(texts) > 12 else ""
    return Latex(f"Over all headline tasks and lengths together: {shown}{more}.")


def _losses(src: Source) -> Latex:
    frame = src.comparisons
    mine = frame[(frame["method"] == src.study.ours) & (frame["kind"] == "baseline")]
    if mine.empty:
        return NO_OURS
    lost = mine[mine["verdict"] == "worse"]
    if lost.empty:
        return Latex(
            f"In none of the {_count(len(mine), 'comparison')} with a baseline, headline or not, "
            "is the verdict that Head-Aware is worse."
        )
    places = []
    for (model, task, length, budget), group in lost.groupby(
        ["model", "task", "length", "budget"], sort=False
    ):
        against = latex.listing(
            f"{src.study.title('methods', row['reference'])} ({METRIC_TITLE[row['metric']]})"
            for row in group.to_dict("records")
        )
        places.append(
            f"{latex.escape(src.study.title('models', model))} on "
            f"{latex.escape(src.study.title('tasks', task))}, {length:,} tokens, budget "
            f"{latex.budget(budget)}: {against}"
        )
    shown = places[:12]
    rest = f"; and {len(places) - 12} more in the appendix" if len(places) > 12 else ""
    return Latex(
        f"Head-Aware is worse, with an interval clear of zero, in {len(lost)} of "
        f"{_count(len(mine), 'comparison')} with a baseline: " + "; ".join(shown) + rest + "."
    )


def _ablation(src: Source) -> Latex:
    frame = src.comparisons
    frame = frame[(frame["kind"] == "ablation") & frame["headline"]]
    if frame.empty:
        return Latex("This study holds no headline comparison of a variant with Head-Aware.")
    parts = {metric: frame[frame["metric"] == metric] for metric in METRIC_TITLE}
    return Latex(" ".join(_changed(src, p, metric) for metric, p in parts.items() if len(p)))


def _changed(src: Source, frame: pd.DataFrame, metric: str) -> str:
    """Which variants are better or worse, in how many of their comparisons, and by how much."""
    named: dict[str, list[Latex]] = {"better": [], "worse": []}
    for method in [m for m in src.study.methods if m in set(frame["method"])]:
        part = frame[frame["method"] == method]
        tally, mean = _tally(part), latex.signed(float(part["difference"].mean()))
        for verdict, names in named.items():
            if tally[verdict]:
                title = latex.escape(src.study.title("methods", method))
                often = f"{tally[verdict]} of {tally['all']}, " if tally["all"] > 1 else ""
                names.append(Latex(rf"\emph{{{title}}} ({often}{mean})"))
    found = [f"{verdict}: {latex.listing(names)}" for verdict, names in named.items() if names]
    holm = _tally(frame)["holm"]
    return (
        f"In {METRIC_TITLE[metric]}, {_count(frame['method'].nunique(), 'variant')} in "
        f"{_count(len(frame), 'comparison')}: {'; '.join(found) or 'all unclear'}"
        f"{'; the rest unclear' if found else ''} (mean differences; {holm} "
        rf"with Holm-corrected \(p<{ALPHA}\))."
    )


def _headline_tasks(src: Source) -> Latex:
    if not (src.cells["policy"] == FULL).any():
        return Latex("This study measures no full cache, so no place is headline.")
    weak, total = src.places.query("not headline"), len(src.places)
    if not total:
        return Latex("No task of this study is scored, so every place counts.")
    if weak.empty:
        return Latex(
            f"In this study {_count(total, 'combination')} of model, task and length "
            f"{'is' if total == 1 else 'are'} scored, and none fails."
        )
    names = latex.listing(
        f"{src.study.title('models', r['model'])} on {src.study.title('tasks', r['task'])} "
        f"at {r['length']:,} tokens"
        for r in weak.to_dict("records")[:12]
    )
    more = " and others" if len(weak) > 12 else ""
    return Latex(
        f"In this study {len(weak)} of {_count(total, 'combination')} of model, task and length "
        f"fail and count for no headline: {names}{more}."
    )


def _power(src: Source) -> Latex:
    frame = src.comparisons[src.comparisons["kind"] == "baseline"]
    if frame.empty:
        return NO_OURS
    contexts = int(frame["n_contexts"].min())
    if contexts < 2:
        return Latex("With one context a cell there is no interval and no test.")
    half = (frame["ci_high"] - frame["ci_low"]) / 2
    widths = [
        f"{latex.decimal(half[frame['metric'] == metric].median())} in {title}"
        for metric, title in METRIC_TITLE.items()
        if (frame["metric"] == metric).any()
    ]
    family = int(frame.groupby("metric").size().max())
    shown = [
        f"{latex.decimal(column.median())} in {title}"
        for metric, title in METRIC_TITLE.items()
        if not (column := frame.loc[frame["metric"] == metric, "detectable"].dropna()).empty
    ]
    visible = (
        "At the variance observed, a comparison shows a true difference of "
        f"{' and '.join(shown)} with 80\\% power (medians, before correction). "
        if shown
        else ""
    )
    least = max(2 / 2**contexts, 1 / (RESAMPLES + 1))
    reach = "can" if family * least < ALPHA else "cannot"
    return Latex(
        f"With {contexts} contexts, half the width of the interval of a difference is in the "
        f"median {' and '.join(widths)}. {visible}A permutation test of {contexts} pairs gives "
        f"no \\(p\\) below {_tiny(least)}, and Holm's correction over "
        f"{_count(family, 'comparison')} asks the best of them for "
        f"\\(p<{_tiny(ALPHA / family)}\\), which it {reach} reach."
    )


def _tiny(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "0.0001"


def _memory(src: Source) -> Latex:
    wide = src.wide()
    wide = wide[wide["policy"] != FULL]
    if wide.empty:
        return Latex("This study holds no method that evicts.")
    share = wide["cache_bytes_allocated"] / wide["cache_bytes_full"]
    over = wide["cache_bytes_allocated"] / wide["cache_bytes_planned"]
    planned = wide.groupby(["model", "task", "length", "budget"])["cache_bytes_planned"]
    spread = float((planned.max() / planned.min() - 1).max())
    return Latex(
        f"The methods that evict allocate {_span(100 * share.min(), 100 * share.max(), 0)}\\% of "
        f"the full cache's bytes, {_span(over.min(), over.max())} times what their budgets plan; "
        f"planned bytes of methods at the same budget differ by at most "
        f"{latex.decimal(100 * spread, 1)}\\%."
    )


def _speed(src: Source) -> Latex:
    wide = src.wide()
    if "decode_ms_per_token" not in wide:
        return Latex("No task of this study tells the time of a token, so nothing is claimed here.")
    if src.study.ours is None:
        return NO_OURS
    axes = ["model", "task", "length"]
    full = wide[wide["policy"] == FULL].set_index(axes)
    mine = wide[wide["method"] == src.study.ours].set_index(axes)
    joined = mine.join(full, suffixes=("", "_full"), how="inner")
    decode = (joined["decode_ms_per_token_full"] / joined["decode_ms_per_token"]).dropna()
    prefill = (joined["prefill_s"] / joined["prefill_s_full"]).dropna()
    if decode.empty:
        return NO_OURS
    return Latex(
        f"Head-Aware decodes at {_span(decode.min(), decode.max())} times the full cache's speed "
        f"and its prefill takes {_span(prefill.min(), prefill.max())} times as long, over the "
        "cells of this study (machine and noise as they were)."
    )


def _classes(src: Source) -> Latex:
    heads = src.table("heads").drop_duplicates(["model", "layer", "kv_head"])
    if heads.empty:
        return Latex("This study holds no calibration.")
    texts = []
    for model, group in heads.groupby("model", sort=False):
        counts = group["class"].value_counts().sort_index()
        listed = latex.listing(f"{number} {name}" for name, number in counts.items())
        title = latex.escape(src.study.title("models", model))
        texts.append(f"Of the {len(group)} KV heads of {title}, the calibration classes {listed}.")
    return Latex(" ".join(texts))


def _stability(src: Source) -> Latex:
    """How well two halves of the calibration agree, on signals that decide something."""
    texts = []
    for model, group in src.table("stability").groupby("model", sort=False):
        listed = latex.listing(
            f"{signal} {value:.2f}"
            for signal, value in zip(group["signal"], group["correlation"], strict=True)
            if signal in ("retrieval", "induction") or signal.startswith("answer")
        )
        texts.append(f"{latex.escape(src.study.title('models', model))}: {listed}.")
    if not texts:
        return Latex("The calibration is too small to be halved.")
    return Latex(
        "Rank correlations over heads between two disjoint halves of it: " + " ".join(texts)
    )
