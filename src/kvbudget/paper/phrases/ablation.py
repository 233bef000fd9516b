"""How the variants of Head-Aware compare with it."""

from collections.abc import Iterable, Iterator

import pandas as pd

from kvbudget.paper import findings, latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import METRIC_TITLE, count, devices_of, gap, title
from kvbudget.paper.source import Source

#: Combinations of model and budget that are told one by one.
FEW = 2
_PLACE = ["model", "budget"]


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Which variants are clearly better or worse, by how much, and which are not."""
    frame = src.table("pooled")
    frame = frame[frame["kind"] == "ablation"]
    if frame.empty:
        none = "This study holds no headline comparison of a variant with Head-Aware."
        yield "summary/ablation", Latex(none)
        return
    # As in the table beside it.
    main = frame["experiment"] == findings.largest(frame)
    others = (_other(src, name, part) for name, part in _new(frame, main))
    yield "summary/ablation", Latex("\n\n".join([_main(src, frame[main]), *others]))


def _main(src: Source, frame: pd.DataFrame) -> str:
    places = len(frame[_PLACE].drop_duplicates())
    if places > FEW:
        return _counted(src, frame[frame["metric"] == frame["metric"].iloc[0]])
    groups = frame.groupby([*_PLACE, "metric"], sort=False)
    return " ".join(_group(src, part, places > 1) for _, part in groups)


def _new(frame: pd.DataFrame, main: pd.Series) -> Iterable[tuple[str, pd.DataFrame]]:
    """Variants that other experiments alone hold, by experiment."""
    told = set(frame.loc[main, "method"])
    return frame[~frame["method"].isin(told)].groupby("experiment", sort=False)


def _other(src: Source, name: str, frame: pd.DataFrame) -> str:
    """Variants of another experiment, in its first metric."""
    frame = frame[frame["metric"] == frame["metric"].iloc[0]]
    groups = frame.groupby(_PLACE, sort=False)
    texts = " ".join(_group(src, part, several=True) for _, part in groups)
    experiment = next(each for each in src.study.experiments if each["name"] == name)
    if _elsewhere(src, experiment, frame):
        texts += " Head-Aware itself was measured on another device than these, which shifts them."
    return rf"\paragraph{{{layout.experiment_title(experiment)}.}} {texts}"


def _elsewhere(src: Source, experiment: dict, frame: pd.DataFrame) -> bool:
    """Whether what the variants are compared with was measured on another device."""
    devices = devices_of(src).rename("device").reset_index()
    devices = devices[devices["model"].isin(frame["model"])]
    devices = devices[devices["length"].isin(experiment["lengths"])]
    devices = devices[devices["task"].isin(experiment["tasks"])]
    devices = devices[devices["budget"].isin(frame["budget"])]
    mine, theirs = (
        set(devices.loc[devices["method"].isin(set(frame[side])), "device"])
        for side in ("method", "reference")
    )
    return mine != theirs


def _counted(src: Source, frame: pd.DataFrame) -> str:
    """How often each variant is clearly better and worse in one metric, where places are many."""
    metric = METRIC_TITLE[frame["metric"].iloc[0]]
    alike: dict[str, list[Latex]] = {}
    for method, part in frame.groupby("method", sort=False):
        verdicts = part["verdict"].value_counts()
        told = [f"clearly {v} in {verdicts[v]}" for v in ("worse", "better") if v in verdicts]
        of = f"{' and '.join(told)} of {count(len(part), 'comparison')} in {metric}" if told else ""
        alike.setdefault(of, []).append(Latex(rf"\emph{{{title(src, str(method))}}}"))
    texts = [
        f"{latex.listing(named)} {'is' if len(named) == 1 else 'are each'} {of}."
        for of, named in alike.items()
        if of
    ]
    if "" in alike:
        texts.append(f"In {metric} no clear difference shows for {latex.listing(alike[''])}.")
    return " ".join(texts)


def _group(src: Source, part: pd.DataFrame, several: bool) -> str:
    """Sentences of one model, budget and metric."""
    first = part.iloc[0]
    metric = METRIC_TITLE[first["metric"]]
    place = _place(src, first) if several else ""
    texts = [
        rf"\emph{{{title(src, row['method'])}}} is clearly {row['verdict']} in {metric}{place}, by "
        f"{gap(row)}."
        for row in part.to_dict("records")
        if row["verdict"] != "unclear"
    ]
    unclear = part.loc[part["verdict"] == "unclear", "method"]
    if not unclear.empty:
        named = latex.listing(Latex(rf"\emph{{{title(src, method)}}}") for method in unclear)
        texts.append(f"In {metric}{place} no clear difference shows for {named}.")
    return " ".join(texts)


def _place(src: Source, row: pd.Series) -> str:
    model = latex.title(src.study, "models", row["model"])
    budget = latex.budget(row["budget"], row["all_kept"])
    return f" ({model}, {budget})"
