"""Budgets as tables and figures name and order them."""

from kvbudget.study.plan import FULL

#: What a budget is called at which a method evicts nothing.
ALL_KEPT = "all kept"


def order(token: str) -> tuple[int, int]:
    """Full first, then shares, then tokens, each ascending."""
    if token == FULL:
        return (0, 0)
    return (1, int(float(token[:-1]) * 1000)) if token.endswith("p") else (2, int(token))


def text(token: str, all_kept: bool = False) -> str:
    """A budget token in print: `20%`, `1,024`, `full`; `all kept` where nothing is evicted."""
    if all_kept:
        return ALL_KEPT
    if token.endswith("p"):
        return f"{token[:-1]}%"
    return f"{int(token):,}" if token.isdigit() else token
