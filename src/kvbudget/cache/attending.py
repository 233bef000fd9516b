"""Base of cache layers that attend for themselves: where a model hands over queries and keys."""

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class AttendingLayer(CacheLayerMixin):
    """A full-attention layer that attends for itself.

    `update` hands the layer itself to the registered attention function, which calls `attend`:
    only there do queries and keys meet, which scores need. Subclasses define `attend` and
    `get_seq_length`.
    """

    is_sliding = False
    _pending: tuple[Tensor, Tensor] | None = None

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

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that masks are made for: all tokens seen."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit on the tokens that may be seen."""
        return -1
