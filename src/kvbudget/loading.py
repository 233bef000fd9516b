"""What a user calls to go on with a cache that was saved: `load_cache(model, file)`."""

from pathlib import Path

from transformers import PreTrainedModel

from kvbudget.api import make_cache
from kvbudget.cache import saved
from kvbudget.cache.cache import BudgetedCache


def load_cache(model: PreTrainedModel, file: str | Path) -> BudgetedCache:
    """The cache that `cache.save(file)` kept; it goes on where that one was.

    Logits of the last token are no part of a cache, so a question has to follow, to be read by the
    model or within the `ids` of `generate`, which reads what comes after the tokens of the cache.

    Args:
        model: the model that the cache was made for, in the same dtype, `attach`ed; on any device.
        file: as `BudgetedCache.save` wrote it.

    Raises:
        UserError: the file is not there, is none of a cache, or not whole, or was written in
            another format, or with another model; or the model is not attached.
    """
    with saved.opened(Path(file), model) as (tensors, facts):
        cache = make_cache(model, **facts["arguments"])
        saved.fill(cache, tensors, facts, model.device)
    return cache
