"""A cache in two parts for reading while writing: the source within a budget, the target whole.

Tokens of the source attend to the source alone, so what is kept of it does not depend on the
target: a policy sees scores of source queries only, H2O's heavy hitters among them. Tokens of the
target attend to what is kept of the source and to the target before them. The target is what every
method writes, and is not bounded.
"""

import torch
from torch import Tensor
from transformers import Cache

from kvbudget.cache.attending import AttendingLayer
from kvbudget.cache.attention import attend
from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.layer import BudgetedLayer
from kvbudget.errors import UserError


class StreamingLayer(AttendingLayer):
    """One layer: a budgeted layer for the source, and keys and values of the target.

    The target is joined to the kept source anew at each step, as transformers' own cache is.

    Attributes:
        source: the part that is bounded.
        arriving: how many tokens of the next forward pass are the source's; they come first.
        keys, values: of the target, `(1, kv_heads, tokens, head_dim)`; None before the first.
    """

    def __init__(self, source: BudgetedLayer) -> None:
        super().__init__()
        self.source = source
        self.arriving = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reset(self) -> None:
        """Forget everything."""
        self.source.reset()
        self.arriving, self.keys, self.values = 0, None, None

    @property
    def sees_input(self) -> bool:
        """Whether the source asks for what attention is given."""
        return self.source.sees_input

    @property
    def written(self) -> int:
        """Tokens of the target."""
        return 0 if self.keys is None else self.keys.shape[2]

    def get_seq_length(self) -> int:
        """Tokens seen of both parts. Positions do not follow from it; the model is told them."""
        return self.source.seen + self.written

    def attend(
        self, query: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
    ) -> Tensor:
        """Attend from the new tokens of the source, evict, then attend from those of the target.

        `query` is `(1, query_heads, new, head_dim)`. Returns the output, shaped like `query`.
        """
        if mask is not None or query.shape[0] > 1:
            raise UserError("reading while writing takes one sequence at a time, without a mask")
        (key, value), given = self.take_pending(), self.take_given()
        read, outputs = self.arriving, []
        if read:
            if given is not None:
                self.source.give(given[:, :read])
            self.source.update(key[:, :, :read], value[:, :, :read])
            outputs.append(self.source.attend(query[:, :, :read], scaling, softcap, None))
        if read < query.shape[2]:
            self._append(key[:, :, read:], value[:, :, read:])
            outputs.append(self._attend_to_both(query[:, :, read:], scaling, softcap))
        return torch.cat(outputs, dim=2)

    def _append(self, key: Tensor, value: Tensor) -> None:
        # A copy in any case: a view would hold on to the keys of the source beside it.
        before = [] if self.keys is None else [(self.keys, self.values)]
        self.keys, self.values = (
            torch.cat(parts, dim=2) for parts in zip(*before, (key, value), strict=True)
        )

    def _attend_to_both(self, query: Tensor, scaling: float, softcap: float | None) -> Tensor:
        """Attention of the last tokens of the target, which are in its part already."""
        by_head = query.unflatten(1, (self.source.kv_heads, -1))
        output = torch.empty_like(by_head)
        for kept in self.source.kept(query.dtype):
            heads = list(kept.heads)
            output[:, heads] = attend(
                by_head[:, heads].flatten(1, 2),
                torch.cat((kept.keys, self.keys[:, heads]), dim=2),
                torch.cat((kept.values, self.values[:, heads]), dim=2),
                scaling=scaling,
                softcap=softcap,
            ).unflatten(1, (len(heads), -1))
        return output.flatten(1, 2)

    def forget(self, count: int) -> None:
        """Drop the last `count` tokens of the target."""
        kept = self.written - count
        self.keys, self.values = self.keys[:, :, :kept], self.values[:, :, :kept]

    def target_bytes(self) -> int:
        """Bytes of keys and values of the target."""
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()


class StreamingCache(Cache):
    """A `transformers.Cache` of one sequence that is translated while it is read.

    Every forward pass takes new tokens of the source, then new tokens of the target, either of
    which may be none; `expect` says how many are the source's. Positions are the caller's
    (`position_ids`): keys come rotated, so the two parts may be numbered apart.

    Args:
        source: an empty cache of any method for the source, by `make_cache` with `prompt_tokens`.

    Raises:
        UserError: the method or the model cannot be used so.
    """

    def __init__(self, source: BudgetedCache) -> None:
        policy = source.plan.policy
        if policy.relative_positions:
            raise UserError(
                "positions inside the cache shift while the source is read, and the target is "
                "numbered apart from it; use positions: absolute"
            )
        if policy.holds_context:
            raise UserError(
                "the method needs the whole source before it evicts, so it cannot stream; use "
                "another"
            )
        if policy.phi is not None:
            raise UserError("phi is an option of the streaming task, not of its methods; drop it")
        if len(source.budgeted) < len(source.layers):
            raise UserError(
                "layers with a sliding window cannot tell source from target, so this model cannot "
                "stream; use one that attends fully in every layer (Llama, Qwen, SmolLM2)"
            )
        super().__init__(layers=[StreamingLayer(layer) for layer in source.layers])
        self.source = source

    def reset(self) -> None:
        """Forget everything, the length of the source included."""
        super().reset()
        self.source.plan.reset()

    def expect(self, tokens: int) -> None:
        """Say how many tokens at the head of the next forward pass are of the source."""
        for layer in self.layers:
            layer.arriving = tokens

    def forget(self, count: int) -> None:
        """Drop the last `count` tokens of the target."""
        for layer in self.layers:
            layer.forget(count)

    def target_bytes(self) -> int:
        """Bytes of keys and values of the target, which all methods hold alike."""
        return sum(layer.target_bytes() for layer in self.layers)
