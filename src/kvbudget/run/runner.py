"""A model with a method, ready to read: what all protocols use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.api import make_cache
from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.joined import JoinedCache


@dataclass
class Runner:
    """A model with a method, ready to read contexts.

    Args:
        model: attached.
        tokenizer: the model's.
        task: module of the task, which scores answers.
        method: `policy` and its options, as in the config.
        budget: as in the config; None for the full cache.
        calibration: of the model's heads, for policies that use one.
        chunk: tokens of a context and of a reference answer that are read at once; None reads
            each whole.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: ModuleType
    method: dict
    budget: int | str | None
    calibration: dict | None
    chunk: int | None

    def cache(self, prompt_tokens: int | None = None) -> BudgetedCache:
        """An empty cache of the method, for a prompt of that length (by default: what comes)."""
        options = {
            key: value for key, value in self.method.items() if key not in ("name", "policy")
        }
        if self.calibration is not None:
            options["calibration"] = self.calibration
        return make_cache(
            self.model, self.method["policy"], self.budget, prompt_tokens=prompt_tokens, **options
        )

    def cache_bytes(self, cache: BudgetedCache, tokens: int) -> dict[str, int]:
        """Bytes of a cache that has read a prompt of so many tokens: planned, allocated, full."""
        itemsize = self.model.dtype.itemsize
        full = cache.planned_bytes(itemsize, tokens=tokens)
        return {
            "cache_bytes_planned": full if self.budget is None else cache.planned_bytes(itemsize),
            "cache_bytes_allocated": cache.allocated_bytes(),
            "cache_bytes_full": full,
            "cache_bytes_sliding": cache.sliding_bytes(),
        }

    def stops(self) -> set[int]:
        """Tokens that end the model's answer."""
        stops = self.model.generation_config.eos_token_id
        return {stops} if isinstance(stops, int) else set(stops or ())

    def read(self, cache: BudgetedCache, ids: list[int], logits: int = 1) -> Tensor:
        """Logits of the last `logits` of some tokens, read in one forward pass."""
        inputs = torch.tensor([ids], device=self.model.device)
        return self.model(inputs, past_key_values=cache, logits_to_keep=logits).logits[0]

    def read_rows(
        self,
        cache: BudgetedCache | JoinedCache,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        *,
        last: bool = False,
    ) -> list[Tensor]:
        """Read tokens of several rows on top of compressed contexts, in one forward pass.

        Args:
            cache: holds the contexts; its rows, if it has any yet, are those.
            rows: tokens of each, one or more of the longest; they need not be equally many.
            starts: the position of the first token of each.
            last: whether the logits after the last token of each row will do.

        Returns logits after the tokens of each row, `(tokens, vocab)`, or `(vocab,)` if `last`.
        """
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        order, lengths = torch.arange(width), torch.tensor([len(row) for row in rows])
        positions = torch.tensor(starts)[:, None] + order
        device = self.model.device
        cache.expect(positions.masked_fill(order >= lengths[:, None], -1).to(device))
        wanted = (lengths - 1).unique() if last else order
        logits = self.model(
            ids.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            logits_to_keep=wanted.to(device),
        ).logits
        if last:
            places = torch.searchsorted(wanted, lengths - 1).tolist()
            return [row[place] for row, place in zip(logits, places, strict=True)]
        return [row[:length] for row, length in zip(logits, lengths.tolist(), strict=True)]

    def pieces(self, ids: list[int]) -> Iterator[list[int]]:
        """Some tokens in the portions in which they are read."""
        step = self.chunk or len(ids)
        return (ids[start : start + step] for start in range(0, len(ids), step))
