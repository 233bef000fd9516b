"""What the caches cost in bytes and in time."""

from collections.abc import Iterator

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import NO_OURS, span
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """Ratios to the full cache, and how near caches come to their plan."""
    yield "summary/memory", _memory(src)
    yield "summary/speed", _speed(src)


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
        f"the full cache's bytes, {span(over.min(), over.max())} times what their budgets plan; "
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
        f"Head-Aware decodes at {span(decode.min(), decode.max())} times the full cache's speed "
        f"and its prefill takes {span(prefill.min(), prefill.max())} times as long, over the "
        "cells of this study (machine and noise as they were)."
    )
