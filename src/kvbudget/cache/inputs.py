"""What attention is given: hidden states, after the norm, that keys and values are projected from.

A cache sees keys and values alone. Hooks on the attention modules hand it the rest, where its
policy asks for that. They know no cache and keep nothing, so that any number of caches may be in
use at once, and go when the cache that asked for them goes.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from kvbudget.errors import UserError


def attention_modules(model: PreTrainedModel, layers: Sequence[int]) -> list[nn.Module]:
    """The attention of some of a model's layers.

    Raises:
        UserError: it is not to be found by its output projection.
    """
    modules = {
        module.layer_idx: module
        for module in model.modules()
        if hasattr(module, "layer_idx") and hasattr(module, "o_proj")
    }
    if not modules.keys() >= set(layers):
        raise UserError(
            f"the attention of {type(model).__name__} has no output projection o_proj, by which "
            "the method finds it; use another method"
        )
    return [modules[layer] for layer in layers]


def given_to(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What a forward pass of an attention module is given, `(batch, new, hidden)`."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def hand_over(model: PreTrainedModel, layers: Sequence[int], cache: Cache) -> None:
    """Let layers of a cache that ask for it have what attention is given, as long as the cache
    lives."""
    modules = attention_modules(model, layers)
    hooks = [each.register_forward_pre_hook(_give, with_kwargs=True) for each in modules]
    weakref.finalize(cache, _remove, hooks)


@torch.compiler.disable
def _give(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    layers = getattr(kwargs.get("past_key_values"), "layers", None)
    if layers is not None and getattr(layers[module.layer_idx], "sees_input", False):
        layers[module.layer_idx].give(given_to(args, kwargs))


@contextmanager
def watched(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """What the attention of some layers was last given, `(batch, new, hidden)` a layer, once the
    model has run."""
    given: list[Tensor] = [torch.empty(0)] * len(layers)

    def keep(place: int):
        def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given[place] = given_to(args, kwargs)

        return see

    modules = enumerate(attention_modules(model, layers))
    hooks = [each.register_forward_pre_hook(keep(i), with_kwargs=True) for i, each in modules]
    try:
        yield given
    finally:
        _remove(hooks)


def _remove(hooks: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
