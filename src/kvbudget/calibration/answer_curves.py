"""What the answer loses when heads keep fewer tokens: loss curves in nats, heads measured jointly.

All heads lose tokens together, from the whole context down to a few, along a grid of shares. The
rise of the answer's negative log-likelihood on the way is shared out among the heads by integrated
gradients (Sundararajan et al., 2017): between two shares each head's output is a mix of what it
gives with fewer and with more tokens, and the gradient at the middle of the way says what each
head's part of the step is worth. Parts add up to the rise (completeness), so a head that matters
only because others have forgotten is seen, which ablating one head at a time cannot do.
"""

from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbudget.cache.budget import SINKS
from kvbudget.cache.cache import read_aside
from kvbudget.calibration.probe import Gate, Probe
from kvbudget.calibration.prompts import Prompt
from kvbudget.policies.rules import RULES


def answer_curves(
    model: PreTrainedModel,
    cache: Probe,
    prompt: Prompt,
    rule: str,
    shares: list[float],
    recent: int,
) -> Tensor:
    """Loss of each head at each share, in nats of the answer's mean negative log-likelihood.

    Args:
        model: attached; its weights need no gradients.
        cache: has read the prompt's context.
        rule: which of `RULES` says what a head keeps.
        shares: ascending shares of the context, the last one is 1.
        recent: tokens at the end that are always kept, like the sinks.

    Returns:
        `(layers, kv_heads, shares)`, 0 at the last; negative where forgetting helps the answer.
    """
    ranks = [_ranks(layer.context.protect(RULES[rule](layer.context), recent=recent)[0])
             for layer in cache.probes]  # fmt: skip
    context = ranks[0].shape[-1]
    kept = [min(context, max(SINKS + recent, round(share * context))) for share in shares]
    heads = (len(ranks), len(ranks[0]))
    gains = [
        _slopes(model, cache, prompt, ranks, fewer, more) if more > fewer else torch.zeros(heads)
        for fewer, more in pairwise(kept)
    ]
    losses = torch.stack([*gains, torch.zeros(heads)], dim=-1)
    return losses.flip(-1).cumsum(dim=-1).flip(-1)


def _slopes(
    model: PreTrainedModel,
    cache: Probe,
    prompt: Prompt,
    ranks: list[Tensor],
    fewer: int,
    more: int,
) -> Tensor:
    """What the answer gains by each head's step from `fewer` to `more` tokens, `(layers, kv_heads)`
    in nats: the gradient in the middle of the step of all heads."""
    mix = torch.full((len(ranks), len(ranks[0])), 0.5, device=model.device, requires_grad=True)
    for layer, rank, own in zip(cache.probes, ranks, mix, strict=True):
        layer.gate = Gate(rank < fewer, rank < more, own)
    with torch.enable_grad():
        loss = prompt.nll(read_aside(model, cache, prompt.later, prompt.answers + 1))
        (slopes,) = torch.autograd.grad(loss, mix)
    for layer in cache.probes:
        layer.gate = None
    return -slopes.cpu()


def _ranks(scores: Tensor) -> Tensor:
    """Place of each token in its head's order, 0 is the best; the earliest first on a tie."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order.argsort(dim=-1)
