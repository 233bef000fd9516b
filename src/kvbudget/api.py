"""What a user calls: `attach(model)`, then `make_cache(model, …)`: knows cache and policies."""

import weakref
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from transformers import PreTrainedConfig, PreTrainedModel

from kvbudget import shipped
from kvbudget.cache import attention
from kvbudget.cache.budget import BOUNDED
from kvbudget.cache.cache import BudgetedCache, Made, geometry_of, layers_of, text_config
from kvbudget.cache.inputs import hand_over
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.cache.positions import Rotation, rotations_of
from kvbudget.cache.quantize import Codec
from kvbudget.errors import UserError
from kvbudget.policies import registry
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.make import make_policy

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3")

# What takes longer to work out than all else of a cache is kept as long as its model.
_ROTATIONS: WeakKeyDictionary[PreTrainedModel, tuple[Rotation, ...]] = WeakKeyDictionary()
_FITTED: WeakKeyDictionary[PreTrainedModel, Fitted] = WeakKeyDictionary()


def attach(model: PreTrainedModel, *, unlisted: bool = False) -> PreTrainedModel:
    """Let a model attend through our caches; other caches work as before. Returns the model.

    Of a model that reads images or sound too, the part that reads text is attached and the others
    are left alone.

    Raises:
        UserError: the architecture is not covered by our tests and `unlisted` is not set; or it has
            no attention, or none that transformers lets one set, or an encoder.
    """
    if not hasattr(model, "set_attn_implementation"):
        raise UserError(f"attach takes a model of transformers, not {type(model).__name__}")
    text = text_config(model)
    kind = text.model_type
    if kind not in ARCHITECTURES and not unlisted:
        raise UserError(
            f"architecture {kind!r} is not supported; supported are {', '.join(ARCHITECTURES)}. "
            "If kvbudget check finds that it works, use attach(model, unlisted=True)"
        )
    if model.config.is_encoder_decoder:
        raise UserError(f"{kind!r} has an encoder; our caches are for models of a decoder alone")
    if getattr(text, "num_attention_heads", None) is None:
        raise UserError(f"{kind!r} has no attention, so no keys and values to keep; use another")
    attention.register()
    model.set_attn_implementation(_for_text(model.config, text))
    if text._attn_implementation != attention.NAME:
        raise UserError(f"transformers does not let the attention of {kind!r} be set; use another")
    return model


def _for_text(config: PreTrainedConfig, text: PreTrainedConfig) -> dict | None:
    """What `set_attn_implementation` takes to set the part whose configuration is `text`."""
    if config is text:
        return {"": attention.NAME}
    for name in config.sub_configs:
        part = getattr(config, name)
        if part is not None and (found := _for_text(part, text)):
            return {name: found}
    return None


def make_cache(
    model: PreTrainedModel,
    method: str,
    budget: int | str | None = None,
    *,
    calibration: dict | None = None,
    prefill_chunk: int | None = None,
    stride: int | None = None,
    bits: int | None = None,
    value_bits: int | None = None,
    prompt_tokens: int | None = None,
    bounded: str = "always",
    **options,
) -> BudgetedCache:
    """A cache for one batch of sequences.

    Args:
        model: a model that was `attach`ed.
        method: a policy of `kvbudget.policies`, such as `"full"`, `"h2o"` or `"head-aware"`.
        budget: mean tokens per KV head of a full-attention layer (`2048`), or a share of the
            prompt (`"20%"`); only `"full"` takes none.
        calibration: of the model's heads, for `"head-aware"`, as `kvbudget calibrate` writes it;
            by default the one that comes with the package, if there is one for this model
            (`kvbudget.shipped`). It is read once: to change it, change a copy.
        prefill_chunk: evict after each so many tokens of a forward pass, so that the cache never
            exceeds the budget by more; None attends to the whole prompt before evicting.
        stride: tokens that may gather above the budget before a decode step evicts them at once;
            None is 1/256 of the budget.
        bits: of a stored number (2, 4 or 8), which lets the bytes of the budget hold more tokens:
            an unquantised number counts 16 bits. None stores keys and values as they are.
        value_bits: of a number of a value, where that is not `bits`.
        prompt_tokens: length of the prompt, where it comes in several forward passes; by default
            the first forward pass is the prompt.
        bounded: `"always"`: what follows the prompt must fit into the budget, too, and evicts;
            `"context"`: the budget is the prompt's, and what follows stands on top of it, as the
            model gives it, and evicts nothing.
        options: of the method, see `kvbudget.policies`.

    Raises:
        UserError: for an unknown method or option and an impossible budget.
    """
    if text_config(model)._attn_implementation != attention.NAME:
        raise UserError("the model attends by its own attention; call attach(model) first")
    for name, value in (("stride", stride), ("prefill_chunk", prefill_chunk)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    if bounded not in BOUNDED:
        raise UserError(f"bounded must be one of {', '.join(BOUNDED)}, not {bounded!r}")
    if (method == "full") != (budget is None):
        raise UserError(
            f"method {method!r} needs a budget" if budget is None else "method 'full' has no budget"
        )
    if calibration is None and registry.method(method).calibrated:
        calibration = shipped.calibration_of(model)
    arguments = {
        "method": method,
        "budget": budget,
        "calibration": calibration,
        "prefill_chunk": prefill_chunk,
        "stride": stride,
        "bits": bits,
        "value_bits": value_bits,
        "prompt_tokens": prompt_tokens,
        "bounded": bounded,
        **options,
    }
    fitted = None if calibration is None else _fitted(model, calibration)
    policy = make_policy(method, fitted, **options)
    geometry = geometry_of(model)
    if value_bits is not None and bits is None:
        raise UserError("value_bits needs bits, which says how keys are stored")
    codec = None if bits is None else Codec(bits, value_bits, geometry.head_dim)
    if codec is not None and policy.relative_positions:
        raise UserError(
            "bits: keys that move inside the cache cannot be quantised; use positions: absolute"
        )
    if policy.holds_context and prefill_chunk is not None:
        raise UserError(
            f"method {method!r} holds the whole context until it is compressed, which "
            "prefill_chunk forbids; drop it"
        )
    plan = Plan(policy, geometry, budget, prompt_tokens, codec, bounded)
    if not plan.geometry.layers:
        raise UserError(
            "every layer of this model has a sliding window, so there is no cache to budget; set "
            "sliding_window: null in its config.json if it was trained without one"
        )
    turns = policy.moves_keys or policy.unrotates
    rotations = _rotations(model, geometry.layers) if turns else None
    shared = LayerOptions(plan, stride, prefill_chunk, rotations)
    layers = layers_of(model, lambda index: BudgetedLayer(index, plan.geometry.kv_heads, shared))
    cache = BudgetedCache(layers, plan, Made(weakref.ref(model), arguments))
    if policy.sees_input:
        hand_over(model, geometry.layers, cache)
    return cache


def _rotations(model: PreTrainedModel, layers: Sequence[int]) -> tuple[Rotation, ...]:
    """The rotations of the full-attention layers, found by running the model once."""
    if model not in _ROTATIONS:
        _ROTATIONS[model] = rotations_of(model, layers)
    return _ROTATIONS[model]


def _fitted(model: PreTrainedModel, record: dict) -> Fitted:
    """A calibration ready to compute with; the last of each model is kept."""
    known = _FITTED.get(model)
    if known is None or known.record is not record:
        known = _FITTED[model] = Fitted(record)
    return known
