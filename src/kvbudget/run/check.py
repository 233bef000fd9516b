"""Does a model work with our caches? A cache that keeps all must give the model's own logits."""

from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from kvbudget.api import attach, make_cache
from kvbudget.errors import UserError
from kvbudget.sources.load import load

TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order differ by far less
PIECES = (40, 5, 1, 1, 1)  # tokens of a prompt, a question and some decode steps


@torch.inference_mode()
def difference(model: PreTrainedModel) -> float:
    """Largest difference between our full cache's logits and the model's own, over the largest
    logit. Tokens are random but repeatable. The model stays attached."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, vocabulary, (1, sum(PIECES)), generator=generator).to(model.device)
    model.set_attn_implementation("eager")  # unlike SDPA, it honours soft caps
    expected = _logits(model, ids, DynamicCache(config=model.config))
    attach(model, unlisted=True)
    ours = _logits(model, ids, make_cache(model, "full"))
    return float((ours - expected).abs().max() / expected.abs().max())


def _logits(model: PreTrainedModel, ids: torch.Tensor, cache) -> torch.Tensor:
    pieces = ids.split(PIECES, dim=1)
    return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)


def check(directory: Path) -> str:
    """Check the model in a directory; returns what was found, in words.

    Raises:
        UserError: it does not work with our caches.
    """
    model, _ = load(directory, "float32")
    found = difference(model)
    kind = model.config.get_text_config(decoder=True).model_type
    if not found <= TOLERANCE:
        raise UserError(
            f"{directory} ({kind}) does not work with our caches: logits differ by {found:.1e} of "
            "the largest; use another model"
        )
    return f"{directory} ({kind}) works: logits differ by at most {found:.1e} of the largest"
