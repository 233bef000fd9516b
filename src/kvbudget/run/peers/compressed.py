"""What a press of kvpress makes of a context."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

#: A share of tokens by which a ratio is moved, so that a press that rounds keeps what is meant.
_NUDGE = 1e-9


@dataclass
class Compressed:
    """A context that a press has compressed.

    Attributes:
        cache: what is held of it.
        tokens: of the context; questions go on from there.
        lengths: tokens that each layer holds.
        masked: of each layer, KV heads and places of what is held but never seen, or None.
        given: keys that each layer was given, where they were asked for.
    """

    cache: DynamicCache
    tokens: int
    lengths: list[int]
    masked: list[tuple[Tensor, Tensor] | None]
    given: dict[int, Tensor] = field(default_factory=dict)


def make_press(kvpress: Any, wanted: dict[str, Any], tokens: int, budget: int) -> Any:
    """A press that keeps `budget` of `tokens` tokens in the mean over the KV heads."""
    press = getattr(kvpress, wanted["press"])(**wanted["arguments"])
    # Most round what they keep down, KVzip and its kin what they evict.
    nudge = _NUDGE if isinstance(press, kvpress.KVzipPress) else -_NUDGE
    if budget < tokens:
        press.compression_ratio = (tokens - budget) / tokens + nudge
    if wanted["safeguard"] == 1:
        return press
    return kvpress.AdaKVPress(press, alpha_safeguard=wanted["safeguard"])


def read(model: PreTrainedModel, press: Any, ids: list[int], *, keys: bool = False) -> Compressed:
    """Read a context and let the press compress it, as kvpress's own pipeline does."""
    cache, given = DynamicCache(), {}
    if keys and hasattr(press, "compress"):
        compress = press.compress

        def seen(module, hidden_states, keys, *others):
            given[module.layer_idx] = keys
            return compress(module, hidden_states, keys, *others)

        press.compress = seen
    with press(model):
        model.model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache)
    masked = []
    for layer in model.model.layers:
        places = getattr(layer.self_attn, "masked_key_indices", None)
        masked.append(None if places is None else places[1:])
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    return Compressed(cache, len(ids), lengths, masked, given)


def slots(model: PreTrainedModel, compressed: Compressed) -> list[list[int]]:
    """Tokens that each KV head of each layer can still see."""
    heads = model.config.num_key_value_heads
    counts = []
    for length, places in zip(compressed.lengths, compressed.masked, strict=True):
        lost = torch.zeros(heads, dtype=torch.long)
        if places is not None:
            lost = torch.bincount(places[0].cpu(), minlength=heads)
        counts.append((length - lost).tolist())
    return counts


def allocated_bytes(cache: DynamicCache) -> int:
    """Bytes of the storage of keys and values, whatever of it can be seen."""
    tensors = [each for layer in cache.layers for each in (layer.keys, layer.values)]
    return sum(each.untyped_storage().nbytes() for each in tensors)


def kept_positions(compressed: Compressed) -> list[list[list[int]]]:
    """Positions that each KV head of each layer can still see, ascending."""
    kept = []
    for index, layer in enumerate(compressed.cache.layers):
        keys, places = layer.keys[0], compressed.masked[index]
        if index in compressed.given:
            found = [_found(*own) for own in zip(keys, compressed.given[index][0], strict=True)]
        else:
            found = [list(range(keys.shape[1])) for _ in keys]
        if places is not None:
            lost = set(zip(*(each.tolist() for each in places), strict=True))
            found = [
                [place for place in own if (head, place) not in lost]
                for head, own in enumerate(found)
            ]
        kept.append(found)
    return kept


def _found(keys: Tensor, given: Tensor) -> list[int]:
    """Where keys stood among those that were given, `(tokens, head_dim)` each."""
    places = {row.numpy().tobytes(): place for place, row in enumerate(given.float().cpu())}
    return sorted(places[row.numpy().tobytes()] for row in keys.float().cpu())
