"""Does a model work with our caches? A cache that keeps all must give the model's own logits, and
keys that are moved must be those that the model itself makes at the other positions."""

from pathlib import Path
from textwrap import shorten

import torch
from transformers import DynamicCache, PreTrainedModel

from kvbudget.api import attach, make_cache
from kvbudget.cache.cache import geometry_of, text_config
from kvbudget.cache.positions import rotations_of
from kvbudget.errors import UserError
from kvbudget.sources.load import load

TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order differ by far less
PIECES = (40, 5, 1, 1, 1)  # tokens of a prompt, a question and some decode steps


@torch.inference_mode()
def difference(model: PreTrainedModel) -> float:
    """Largest difference between our full cache's logits and the model's own, over the largest
    logit. Tokens are random but repeatable. The model stays attached.

    Raises:
        UserError: the model cannot be attached, or is none that a cache serves.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, text_config(model).vocab_size, (1, sum(PIECES)), generator=generator)
    ids = ids.to(model.device)
    attach(model, unlisted=True)
    cache = make_cache(model, "full")
    ours = _logits(model, ids, cache)
    if any(layer.get_seq_length() != sum(PIECES) for layer in cache.layers):
        raise UserError("it does not keep keys and values in a cache")
    model.set_attn_implementation("eager")  # unlike SDPA, it honours soft caps
    expected = _logits(model, ids, DynamicCache(config=model.config))
    at_once = model(ids).logits
    attach(model, unlisted=True)
    if not _distance(at_once, expected) <= TOLERANCE:
        raise UserError("it gives other logits in pieces than at once, as encoders do")
    return _distance(ours, expected)


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())


def _logits(model: PreTrainedModel, ids: torch.Tensor, cache) -> torch.Tensor:
    pieces = ids.split(PIECES, dim=1)
    return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)


def check(directory: Path) -> str:
    """Check the model in a directory; returns what was found, in words.

    Raises:
        UserError: there is no such model, or it does not work with our caches.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} is no folder of a model: it has no config.json")
    model = _attempt(f"{directory} cannot be loaded", lambda: load(directory, "float32")[0])
    named = f"{directory} ({text_config(model).model_type})"
    found = _attempt(f"{named} does not work with our caches", lambda: difference(model))
    if not found <= TOLERANCE:
        raise UserError(
            f"{named} does not work with our caches: logits differ by {found:.1e} of the largest; "
            "use another model"
        )
    works = f"{named} works: logits differ by at most {found:.1e} of the largest"
    try:
        rotations_of(model, geometry_of(model).layers)
    except UserError as error:
        return f"{works}; every method works, but {error}"
    return f"{works}; every method works"


def _attempt(trouble: str, action):
    """The result of an action on a model that may be of any kind, and so fail in any way."""
    try:
        return action()
    except UserError as error:
        raise UserError(f"{trouble}: {error}; use another model") from None
    except Exception as error:
        said = shorten(str(error), 200, placeholder=" …")
        raise UserError(f"{trouble}: {type(error).__name__}: {said}; use another model") from error
