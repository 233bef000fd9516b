"""Base of cache layers that attend for themselves: where a model hands over queries and keys."""

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvbudget.errors import UserError


class AttendingLayer(CacheLayerMixin):
    """A full-attention layer that attends for itself.

    `update` hands the layer itself to the registered attention function, which calls `attend`:
    only there do queries and keys meet, which scores need. Subclasses define `attend` and
    `get_seq_length`.
    """

    is_sliding = False
    sees_input = False  # whether it asks for what attention is given
    _pending: tuple[Tensor, Tensor] | None = None
    _given: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate before the first attention, which knows the prompt's length."""
        self.is_initialized = True

    @torch.compiler.disable
    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Take new keys and values, `(batch, kv_heads, new, head_dim)`; return the layer itself."""
        self.is_initialized = True
        self._pending = (key_states, value_states)
        return self, self

    def take_pending(self) -> tuple[Tensor, Tensor]:
        """The keys and values of the last update, once."""
        pending, self._pending = self._pending, None
        return pending

    def give(self, given: Tensor) -> None:
        """Take what attention is given for the next update, `(batch, new, hidden)`."""
        self._given = given

    def take_given(self) -> Tensor | None:
        """What attention was given for the last update, once; None unless the layer asks for it.

        Raises:
            UserError: nothing came, as the cache was made for another model.
        """
        given, self._given = self._given, None
        if self.sees_input and given is None:
            raise UserError(
                "the method sees what attention is given, and this model has not handed it over; "
                "make the cache for the model that it is used with"
            )
        return given

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that masks are made for: all tokens seen."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit on the tokens that may be seen."""
        return -1

    # What transformers may ask of a layer and this one does not do.

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: what a layer has seen beside its tokens does not follow beams."""
        raise UserError("our caches do not follow beams; generate with num_beams=1")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, unless a subclass can take tokens back."""
        raise UserError("this cache cannot take tokens back; generate without assistance")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused: a cache is made for one batch."""
        raise _fixed_batch()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused: a cache is made for one batch."""
        raise _fixed_batch()

    def offload(self) -> None:
        """Refused: slots are written in place where the model computes."""
        raise UserError("our caches stay on the model's device; give them a smaller budget")

    def prefetch(self) -> None:
        """Refused, as `offload`."""
        self.offload()


def _fixed_batch() -> UserError:
    return UserError("our caches are made for one batch; read the sequences into a cache together")
