"""Caches that hold as many tokens as one likes, without reading them.

Keys and values are random, which cost what real ones do, and caches adopt them as they adopt a
prompt that was recorded: 32,000 tokens take seconds, where reading them takes minutes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvbudget.cache.cache import BudgetedCache, SlidingLayer, geometry_of
from kvbudget.cache.layer import BudgetedLayer
from kvbudget.cache.slots import Tokens


def fill(model: PreTrainedModel, caches: Iterable[tuple[Cache, int]]) -> None:
    """Give empty caches so many tokens each, compressed where a method compresses.

    All get the same, drawn a layer at a time: the last tokens where one gets fewer.
    """
    caches = list(caches)
    geometry = geometry_of(model)
    size = (1, geometry.kv_heads, max(tokens for _, tokens in caches), geometry.head_dim)
    for index in range(model.config.get_text_config(decoder=True).num_hidden_layers):
        keys, values = (torch.randn(size, dtype=model.dtype, device=model.device) for _ in "kv")
        for cache, tokens in caches:
            own = keys[:, :, -tokens:], values[:, :, -tokens:]
            if isinstance(cache, BudgetedCache):
                _adopt(cache.layers[index], *own)
            else:
                cache.update(*own, index)
    for cache, _ in caches:
        if isinstance(cache, BudgetedCache) and cache.plan.policy.holds_context:
            cache.compress()


def _adopt(layer: BudgetedLayer | SlidingLayer, keys: Tensor, values: Tensor) -> None:
    _, kv_heads, count, _ = keys.shape
    if isinstance(layer, SlidingLayer):
        window = layer.sliding_window - 1
        layer.adopt(keys[:, :, -window:].clone(), values[:, :, -window:].clone(), count)
        return
    positions = torch.arange(count, dtype=torch.int32, device=keys.device)
    numbers = {
        signal.name: torch.rand(1, kv_heads, count, device=keys.device)
        for signal in layer.policy.signals(layer.index)
        if not signal.of_arrival
    }
    heads = tuple(range(kv_heads))
    layer.adopt(Tokens(heads, keys, values, positions.expand(1, kv_heads, count), numbers))
