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
    share = wide["cache_bytes_allocated"] / wide["cache_bytes_full"]
    over = wide["cache_bytes_allocated"] / wide["cache_bytes_planned"]
    planned = wide.groupby(["model", "task", "length", "budget"])["cache_bytes_planned"]
    spread = float((planned.max() / planned.min() - 1).max())
    return Latex(
        f"The methods that evict allocate {span(100 * share.min(), 100 * share.max(), 0)}\\% of "
        f"the full cache's bytes. That is {span(over.min(), over.max())} times what their budgets "
        f"plan. Planned bytes of methods at the same budget differ by at most "
        f"{latex.decimal(100 * spread, 1)}\\%.{_on_top(wide)}"
    )


def _on_top(wide: pd.DataFrame) -> str:
    """What the budget is not for, where it is the context's alone."""
    if "cache_tokens_on_top" not in wide:
        return ""
    wide = wide.dropna(subset="cache_tokens_on_top")
    tokens = wide["cache_tokens_on_top"]
    share = 100 * (wide["cache_bytes_on_top"] / wide["cache_bytes_full"]).max()
    return (
        " A question with its answer stands on top of the context's budget: "
        f"{span(tokens.min(), tokens.max(), 0)} tokens, at most {latex.decimal(share, 0)}\\% of "
        "the full cache's bytes."
    )


def _speed(src: Source) -> Latex:
    if "decode_ms_per_token" not in set(src.cells["metric"]):
        return Latex("No task of this study tells the time of a token, so nothing is claimed here.")
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
        for budget in shares if len(found) > MOST else found:
            part = of_bits[of_bits["budget"] == budget]
            where = latex.budget(budget) + (" tokens" if budget.isdigit() else " of the bytes")
            evicting = part[~part["all_kept"]]["kept"]
            if evicting.empty:
                texts.append(
                    f"In {bits(name)} some budgets evict nothing, called \\emph{{all kept}}."
                )
            else:
                held = span(100 * evicting.min(), 100 * evicting.max(), 0)
                texts.append(f"In {bits(name)}, {where} hold {held}\\% of the tokens.")
    return Latex(" ".join(dict.fromkeys(texts)))


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
