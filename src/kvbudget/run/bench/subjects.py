"""What is compared: our methods, and what transformers has."""

from collections.abc import Callable

from transformers import Cache, DynamicCache, PreTrainedModel, QuantizedCache

from kvbudget.api import make_cache
from kvbudget.cache import attention
from kvbudget.cache.cache import BudgetedCache, text_config

SHARE = 0.2  # of the prompt, the budget of all methods that evict
FULL = {"full": {}, "full-4bit": {"bits": 4}}
EVICTING = {
    "h2o": {"method": "h2o"},
    "streaming-llm": {"method": "streaming-llm"},
    "head-aware": {"method": "head-aware"},
    "head-aware-4bit": {"method": "head-aware", "bits": 4},
}
OURS = (*FULL, *EVICTING)
#: transformers' own cache: what all times are over.
STOCK = "stock"
#: The same with as many tokens in each head as a budget has, as the presses of kvpress leave it.
PRESSED = "stock-pressed"
#: What transformers has for four bits a number.
PACKED = "quanto-4bit"


def ours(
    model: PreTrainedModel, name: str, budget: int | str = f"{SHARE:.0%}", **options
) -> BudgetedCache:
    """An empty cache of one of `OURS`; a method that evicts gets the budget."""
    _set(model, attention.NAME)
    if name in FULL:
        return make_cache(model, "full", **FULL[name], **options)
    return make_cache(model, budget=budget, **EVICTING[name], **options)


def stock(model: PreTrainedModel) -> Cache:
    """An empty cache as `generate` makes it."""
    return DynamicCache(config=model.config)


def theirs(model: PreTrainedModel) -> tuple[dict[str, Callable[[], Cache]], dict[str, str]]:
    """What makes the caches of transformers that work here, and why which others do not."""
    made = {STOCK: lambda: stock(model), PRESSED: lambda: stock(model)}

    def packed() -> Cache:
        return QuantizedCache("quanto", text_config(model), nbits=4)

    try:
        packed()
    except ImportError:
        return made, {PACKED: "optimum-quanto is not installed: pip install '.[bench]'"}
    except ValueError as error:  # of sliding windows
        return made, {PACKED: str(error)}
    return made | {PACKED: packed}, {}


def attend_for(model: PreTrainedModel, cache: Cache) -> None:
    """Let the model attend as a cache wants it."""
    _set(model, attention.NAME if isinstance(cache, BudgetedCache) else "sdpa")


def _set(model: PreTrainedModel, wanted: str) -> None:
    if text_config(model)._attn_implementation != wanted:
        model.set_attn_implementation(wanted)
