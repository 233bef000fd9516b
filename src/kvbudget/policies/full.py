"""Baseline: the full cache, with Group Position Encoding (Tong et al., Findings of ACL 2025)."""

from kvbudget.cache.policy import Policy
from kvbudget.errors import UserError


class Full(Policy):
    """Keeps every token.

    Source tokens are numbered 0…S-1 and target tokens phi, phi+1, …

    Args:
        phi: `"auto"` is S, which equals ordinary positions; an integer is the published streaming
            recipe, out of distribution for a model that was not fine-tuned on it.
    """

    def __init__(self, phi: int | str = "auto") -> None:
        if phi != "auto" and (type(phi) is not int or phi < 0):
            raise UserError(f"phi must be 'auto' or an integer of 0 or more, not {phi!r}")
        self.phi = None if phi == "auto" else phi
