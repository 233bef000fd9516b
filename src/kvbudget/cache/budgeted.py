"""The cache that plugs into transformers: `attach(model)`, then `make_cache(model, …)`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    get_layer_types_and_kwargs,
)

from kvbudget import attention
from kvbudget.cache.layer import BudgetedLayer, LayerOptions, LayerSnapshot
from kvbudget.cache.plan import Geometry, Plan
from kvbudget.cache.quantize import Codec
from kvbudget.errors import UserError
from kvbudget.policies import make_policy
from kvbudget.positions import inverse_frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3")


class SlidingLayer(DynamicSlidingWindowLayer):
    """The library's sliding-window layer, without the rest of the prompt.

    The library keeps a view of its window, which holds on to all keys and values that it was cut
    from until the next update.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Keys and values to attend to; only the window is kept."""
        seen = super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = self.keys.clone(), self.values.clone()
        return seen

    def snapshot(self) -> tuple[Tensor, Tensor, int]:
        """The state to come back to. It shares the tensors, which are replaced, not written to."""
        return self.keys, self.values, self.cumulative_length

    def restore(self, snapshot: tuple[Tensor, Tensor, int]) -> None:
        """Come back to a snapshot of this layer; it can be restored again."""
        self.is_initialized = True
        self.keys, self.values, self.cumulative_length = snapshot


@contextmanager
def sliding_layers_forget(cache: Cache) -> Iterator[None]:
    """Read tokens for once: sliding layers are as before at the end of the block."""
    layers = [layer for layer in cache.layers if isinstance(layer, SlidingLayer)]
    states = [layer.snapshot() for layer in layers]
    yield
    for layer, state in zip(layers, states, strict=True):
        layer.restore(state)


@dataclass(frozen=True)
class Snapshot:
    """State of a cache to come back to, a layer at a time."""

    prompt_tokens: int | None
    layers: list[LayerSnapshot | tuple]


class BudgetedCache(Cache):
    """A `transformers.Cache` that keeps a budget of tokens per KV head.

    Made by `make_cache`. Pass it as `past_key_values` to a model that was `attach`ed.

    Attributes:
        plan: budgets of all heads, and the policy.
    """

    def __init__(self, layers: list, plan: Plan) -> None:
        super().__init__(layers=layers)
        self.plan = plan

    @property
    def budgeted(self) -> list[BudgetedLayer]:
        """The full-attention layers."""
        return [layer for layer in self.layers if isinstance(layer, BudgetedLayer)]

    def allocated_bytes(self) -> int:
        """Bytes held by the full-attention layers, counted on the storage that really exists."""
        return sum(layer.allocated_bytes() for layer in self.budgeted)

    def sliding_bytes(self) -> int:
        """Bytes held by sliding-window layers, which take no part in the budget."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.layers
            if isinstance(layer, SlidingLayer) and layer.is_initialized
            for tensor in (layer.keys, layer.values)
        )

    def kept_positions(self, layer: int) -> list[Tensor]:
        """Original positions that each KV head of a model layer keeps, ascending, a tensor each."""
        if not isinstance(self.layers[layer], BudgetedLayer):
            raise UserError(f"layer {layer} is a sliding-window layer: it evicts nothing by budget")
        return self.layers[layer].kept_positions()

    def planned_bytes(self, itemsize: int, tokens: int | None = None) -> int:
        """Bytes of keys and values of one sequence at the budget, or at `tokens` per KV head."""
        return self.plan.geometry.planned_bytes(tokens or self.plan.tokens(), itemsize)

    def reset(self) -> None:
        """Forget everything, the prompt's length included."""
        super().reset()
        self.plan.reset()

    def compress(self) -> None:
        """Evict a context that was held as a whole: all heads of all layers share one total."""
        scores = [layer.held_scores() for layer in self.budgeted]
        planned = [budget for layer in self.budgeted for budget in layer.planned]
        heads = iter(self.plan.policy.share_out([own for each in scores for own in each], planned))
        for layer, own in zip(self.budgeted, scores, strict=True):
            layer.compress(own, [next(heads) for _ in own])

    def snapshot(self) -> Snapshot:
        """The state to come back to: ask several questions of one compressed context."""
        return Snapshot(self.plan.prompt_tokens, [layer.snapshot() for layer in self.layers])

    def restore(self, snapshot: Snapshot) -> None:
        """Come back to a snapshot of this cache; it can be restored again."""
        self.plan.restore(snapshot.prompt_tokens)
        for layer, state in zip(self.layers, snapshot.layers, strict=True):
            layer.restore(state)


def attach(model: PreTrainedModel, *, unlisted: bool = False) -> PreTrainedModel:
    """Let a model attend through our caches; other caches work as before. Returns the model.

    Raises `UserError` for an architecture that our tests do not cover, unless `unlisted` is set.
    """
    kind = _text_config(model).model_type
    if kind not in ARCHITECTURES and not unlisted:
        raise UserError(
            f"architecture {kind!r} is not supported; supported are {', '.join(ARCHITECTURES)}. "
            "If python -m kvbudget.check finds that it works, use attach(model, unlisted=True)"
        )
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


def make_cache(
    model: PreTrainedModel,
    method: str,
    budget: int | str | None = None,
    *,
    profile: dict | None = None,
    prefill_chunk: int | None = None,
    stride: int | None = None,
    bits: int | None = None,
    value_bits: int | None = None,
    prompt_tokens: int | None = None,
    **options,
) -> BudgetedCache:
    """A cache for one batch of sequences.

    Args:
        model: a model that was `attach`ed.
        method: a policy of `kvbudget.policies`, such as `"full"`, `"h2o"` or `"head-aware"`.
        budget: mean tokens per KV head of a full-attention layer (`2048`), or a share of the
            prompt (`"20%"`); only `"full"` takes none.
        profile: of the model's heads, for `"head-aware"`.
        prefill_chunk: evict after each so many tokens of a forward pass, so that the cache never
            exceeds the budget by more; None attends to the whole prompt before evicting.
        stride: tokens that may gather above the budget before a decode step evicts them at once;
            None is 1/256 of the budget.
        bits: of a stored number (2, 4 or 8), which lets the bytes of the budget hold more tokens:
            an unquantised number counts 16 bits. None stores keys and values as they are.
        value_bits: of a number of a value, where that is not `bits`.
        prompt_tokens: length of the prompt, where it comes in several forward passes; by default
            the first forward pass is the prompt.
        options: of the method, see `kvbudget.policies`.

    Raises:
        UserError: for an unknown method or option and an impossible budget.
    """
    if _text_config(model)._attn_implementation != attention.NAME:
        raise UserError("the model attends by its own attention; call attach(model) first")
    for name, value in (("stride", stride), ("prefill_chunk", prefill_chunk)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    if (method == "full") != (budget is None):
        raise UserError(
            f"method {method!r} needs a budget" if budget is None else "method 'full' has no budget"
        )
    if profile is not None:
        options["profile"] = profile
    policy = make_policy(method, **options)
    geometry = geometry_of(model)
    if value_bits is not None and bits is None:
        raise UserError("value_bits needs bits, which says how keys are stored")
    codec = None if bits is None else Codec(bits, value_bits, geometry.head_dim)
    if codec is not None and policy.relative_positions:
        raise UserError(
            "bits: keys that move inside the cache cannot be quantised; use positions: absolute"
        )
    if policy.reconstructs and prefill_chunk is not None:
        raise UserError(
            f"method {method!r} holds the whole context until it is compressed, which "
            "prefill_chunk forbids; drop it"
        )
    plan = Plan(policy, geometry, budget, prompt_tokens, codec)
    if not plan.geometry.layers:
        raise UserError(
            "every layer of this model has a sliding window, so there is no cache to budget; set "
            "sliding_window: null in its config.json if it was trained without one"
        )
    moves_keys = policy.relative_positions or policy.phi is not None
    frequencies = inverse_frequencies(model) if moves_keys else None
    shared = LayerOptions(plan, stride, prefill_chunk, frequencies)
    layers = layers_of(model, lambda index: BudgetedLayer(index, plan.geometry.kv_heads, shared))
    return BudgetedCache(layers, plan)


def layers_of(
    model: PreTrainedModel, full: Callable[[int], CacheLayerMixin]
) -> list[CacheLayerMixin]:
    """Cache layers of a model: `full(index)` for its full-attention layers, counted among
    themselves, and the library's for those with a sliding window."""
    layers, index = [], 0
    for kind, kwargs in zip(*get_layer_types_and_kwargs(_text_config(model)), strict=True):
        if kind == "full_attention":
            layers.append(full(index))
            index += 1
        else:
            layers.append(SlidingLayer(**kwargs))
    return layers


def geometry_of(model: PreTrainedModel) -> Geometry:
    """Full-attention layers and heads of a model."""
    config = _text_config(model)
    kinds, _ = get_layer_types_and_kwargs(config)
    head_dim = getattr(config, "head_dim", None)
    return Geometry(
        layers=tuple(i for i, kind in enumerate(kinds) if kind == "full_attention"),
        kv_heads=config.num_key_value_heads,
        query_heads=config.num_attention_heads,
        head_dim=head_dim or config.hidden_size // config.num_attention_heads,
    )


def _text_config(model: PreTrainedModel):
    return model.config.get_text_config(decoder=True)
