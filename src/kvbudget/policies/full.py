"""Baseline: the full cache, with Group Position Encoding (Tong et al., Findings of ACL 2025)."""

from kvbudget.cache.policy import Policy


class Full(Policy):
    """Keeps every token.

    Source tokens are numbered 0…S-1 and target tokens phi, phi+1, …

    Args:
        phi: `"auto"` is S, which equals ordinary positions; an integer is the published streaming
            recipe, out of distribution for a model that was not fine-tuned on it.
    """

    def __init__(self, phi: int | str) -> None:
        self.phi = None if phi == "auto" else phi
