"""The masked oracle: a full cache, with -inf on what our cache has evicted.

It shares no code with the cache: transformers' own cache holds every key, and attention is the
textbook formula over all of them. Where positions are those inside the cache, the oracle numbers
the visible tokens as published and rotates raw keys with complex numbers.
"""

import copy

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from kvbudget.cache.layer import BudgetedLayer

_current: "Oracle"


class Oracle:
    """Runs a stock model beside our cache and sees what our cache sees."""

    def __init__(self, model: torch.nn.Module, relative: bool = False) -> None:
        self.model, self.relative = model, relative
        self.cache = DynamicCache(config=model.config)
        self.seen = 0
        self.kept: dict[int, list[torch.Tensor]] = {}

    def forward(self, ids: torch.Tensor, ours, tree=None, **inputs) -> torch.Tensor:
        """Logits of the new tokens `ids` given what `ours` keeps before it sees them.

        `tree` is `(new, seen + new)`, True where a token is seen, in place of causality.
        """
        global _current
        _current = self
        self.tree = tree
        self.kept = {
            index: layer.kept_positions()
            for index, layer in enumerate(ours.layers)
            if isinstance(layer, BudgetedLayer)
        }
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("oracle")
        logits = self.model(ids, past_key_values=self.cache, **inputs).logits
        self.model.set_attn_implementation(before)
        self.seen += ids.shape[1]
        return logits

    def snapshot(self):
        return copy.deepcopy(self.cache), self.seen

    def restore(self, state) -> None:
        self.cache, self.seen = copy.deepcopy(state[0]), state[1]

    def visible(self, layer: int, head: int, new: int) -> torch.Tensor:
        """`(new, seen + new)`: which tokens each new query of a KV head may attend to."""
        mask = torch.ones(new, self.seen + new, dtype=torch.bool).tril(self.seen)
        mask = mask if self.tree is None else self.tree.clone()
        evicted = torch.ones(self.seen, dtype=torch.bool)
        evicted[self.kept[layer][head]] = False
        mask[:, : self.seen] &= ~evicted
        return mask


def turn(x: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotate `(tokens, head_dim)` by `positions`, as complex numbers in float64."""
    half = len(frequencies)
    pairs = torch.complex(x[:, :half].double(), x[:, half:].double())
    angles = positions.double()[:, None] * frequencies.double()
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)


def oracle_attention(module, query, key, value, mask, scaling=None, softcap=None, **kwargs):
    oracle, layer = _current, module.layer_idx
    new, group = query.shape[2], query.shape[1] // key.shape[1]
    outputs = []
    for head in range(query.shape[1]):
        q, k, v = query[0, head], key[0, head // group], value[0, head // group]
        bounded = layer in oracle.kept
        visible = oracle.visible(layer, head // group, new) if bounded else mask[0, 0]
        if layer in oracle.kept and oracle.relative:
            frequencies = oracle.model.base_model.rotary_emb.inv_freq
            everything = torch.arange(k.shape[0])
            seen_by_last = visible[-1]
            inside = seen_by_last.long().cumsum(0) - 1  # index of each visible token in the cache
            k = turn(turn(k, -everything, frequencies), inside, frequencies)
            q = turn(turn(q, -everything[-new:], frequencies), inside[-new:], frequencies)
        logits = q @ k.T * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        outputs.append(logits.masked_fill(~visible, float("-inf")).softmax(-1) @ v)
    return torch.stack(outputs)[None].transpose(1, 2).contiguous(), None


def oracle_mask(*args, allow_is_causal_skip=True, **kwargs):
    return sdpa_mask(*args, allow_is_causal_skip=False, **kwargs)


AttentionInterface.register("oracle", oracle_attention)
AttentionMaskInterface.register("oracle", oracle_mask)
