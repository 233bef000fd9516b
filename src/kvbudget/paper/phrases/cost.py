"""What the caches cost in bytes and in time, and what the bytes hold."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import budgets, latex, times
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import NO_CALIBRATION, NO_OURS, bits, span
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL, OURS

#: Budgets that are told one by one; of more, those that are shares.
MOST = 3


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Ratios to the full cache, how near caches come to their plan, and tokens beside bytes."""
    yield "summary/memory", _memory(src)
    yield "summary/speed", _speed(src)
    yield "summary/tokens", _tokens(src)
    yield "summary/arithmetic", _arithmetic(src)


def _memory(src: Source) -> Latex:
    wide = src.wide()
    wide = wide[wide["policy"] != FULL]
    if wide.empty:
        return Latex("This study holds no method that evicts.")
    planned = wide.groupby(["model", "task", "length", "budget"])["cache_bytes_planned"]
    spread = round(100 * float((planned.max() / planned.min() - 1).max()), 1)
    alike = f"differ by at most {latex.decimal(spread, 1)}\\%" if spread else "are equal"
    texts = [f"Bytes that methods plan at the same budget {alike}."]
    evicting = wide[~wide["all_kept"]]
    if not evicting.empty:
        share = 100 * evicting["cache_bytes_allocated"] / evicting["cache_bytes_full"]
        over = evicting["cache_bytes_allocated"] / evicting["cache_bytes_planned"]
        texts += [
            f"Where methods evict, they allocate {span(share.min(), share.max(), 0)}\\% of the "
            "full cache's bytes.",
            f"That is {span(over.min(), over.max())} times what is planned.",
        ]
    return Latex(f"{' '.join(texts)}{_on_top(wide)}")


def _on_top(wide: pd.DataFrame) -> str:
    """What the budget is not for, where it is the context's alone."""
    if "cache_tokens_on_top" not in wide:
        return ""
    wide = wide.dropna(subset="cache_tokens_on_top")
    tokens = wide["cache_tokens_on_top"]
    of_full, of_plan = (
        latex.decimal(100 * (wide["cache_bytes_on_top"] / wide[f"cache_bytes_{name}"]).max(), 0)
        for name in ("full", "planned")
    )
    return (
        " A question with its answer stands on top of the context's budget: "
        f"{span(tokens.min(), tokens.max(), 0)} tokens. That is at most {of_full}\\% of the full "
        f"cache's bytes, and at most {of_plan}\\% of a budget's."
    )


def _speed(src: Source) -> Latex:
    if "decode_ms_per_token" not in set(src.cells["metric"]):
        return Latex("This study times no step, so nothing is claimed of speed.")
    if src.study.ours is None:
        return NO_OURS
    ratios = times.ratios(src)
    mine = ratios[ratios["method"] == src.study.ours]
    if mine.empty:
        return Latex(
            "Head-Aware and the full cache were not timed on one machine, so no time is compared."
        )
    decode, prefill = mine["decode"], mine["prefill"].dropna()
    return Latex(
        f"Head-Aware decodes at {span(decode.min(), decode.max())} times the full cache's speed. "
        f"Its prefill takes {span(prefill.min(), prefill.max())} times as long. Times come from "
        f"{latex.listing(map(latex.escape, dict.fromkeys(mine['machine'])))}."
    )


def _tokens(src: Source) -> Latex:
    """What a budget holds in few bits, as shares of the context's tokens."""
    wide = src.wide()
    few = wide[~wide["bits"].isin(["16"])]
    if few.empty:
        return Latex("All methods of this study store numbers of sixteen bits.")
    texts = []
    for name, of_bits in few.groupby("bits", sort=False):
        found = sorted(set(of_bits["budget"]), key=budgets.order)
        shares = [budget for budget in found if not budget.isdigit()]
        held = []
        for budget in shares if shares and len(found) > MOST else found:
            evicting = 100 * of_bits[(of_bits["budget"] == budget) & ~of_bits["all_kept"]]["kept"]
            if evicting.empty:
                continue
            where = latex.budget(budget) + (" tokens" if budget.isdigit() else "")
            held.append(f"{span(evicting.min(), evicting.max(), 0)}\\% at {where}")
        if held:
            told = "; ".join(held)
            texts.append(
                f"In {bits(name)}, budgets hold these shares of a context's tokens: {told}."
            )
    if few["all_kept"].any():
        texts.append("A budget at which nothing is evicted is called \\emph{all kept}.")
    return Latex(" ".join(texts))


def _arithmetic(src: Source) -> Latex:
    """What predicting scores costs beside attention, by the shapes of the models."""
    ours = {cell.model for cell in src.study.cells if cell.policy == OURS}
    named = []
    for row in src.table("models").to_dict("records"):
        if row["model"] in ours:
            heads, served = row["kv_heads"], row["query_heads"] // row["kv_heads"]
            tokens = latex.decimal(heads / served * (1 + 1 / row["head_dim"]), 1)
            named.append(Latex(f"{tokens} with {latex.title(src.study, 'models', row['model'])}"))
    return Latex(f"That is {latex.listing(named)}." if named else NO_CALIBRATION)
