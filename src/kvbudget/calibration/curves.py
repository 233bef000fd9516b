"""Loss curves: the attention that later tokens lose when a head keeps only its best tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from kvbudget.cache.policy import Candidates
from kvbudget.calibration.probe import ProbeLayer


def loss_curves(
    layer: ProbeLayer,
    rules: dict[str, Callable[[Candidates], Tensor]],
    shares: list[float],
    recent: int,
) -> dict[str, dict[str, Tensor]]:
    """Lost attention of one layer's KV heads on one prompt.

    Returns `{"mass" or "output": {rule: (kv_heads, shares)}}`. Mass is the share of the later
    tokens' attention that falls on evicted tokens; for output each attention weight counts as
    much as the norm of the value it brings. Sinks and `recent` last tokens are kept first.
    """
    context = layer.context
    count = context.tokens.count
    attention = layer.probabilities[0].sum(dim=(1, 2))  # (kv_heads, tokens)
    norms = context.values[0].float().norm(dim=-1)
    later = attention[:, count:]
    # The later tokens' own values are close to those of the context; their mean norm stands in.
    worth = {
        "mass": (attention[:, :count], later.sum(dim=-1)),
        "output": (attention[:, :count] * norms, later.sum(dim=-1) * norms.mean(dim=-1)),
    }
    kept = torch.tensor([round(share * count) for share in shares], device=norms.device)
    curves: dict[str, dict[str, Tensor]] = {kind: {} for kind in worth}
    for name, rule in rules.items():
        order = context.protect(rule(context), recent=recent)[0]
        order = order.sort(dim=-1, descending=True, stable=True).indices
        for kind, (weights, beside) in worth.items():
            kept_mass = weights.gather(-1, order).cumsum(dim=-1)
            kept_mass = torch.nn.functional.pad(kept_mass, (1, 0))
            total = kept_mass[:, -1]
            lost = (total[:, None] - kept_mass[:, kept]) / (total + beside)[:, None]
            curves[kind][name] = lost.clamp(min=0)
    return curves
