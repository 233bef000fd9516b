"""What a policy sees and what it decides. A policy scores; the cache keeps the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.signals import Signal
from kvbudget.cache.slots import Tokens


@dataclass
class Candidates:
    """Tokens of some KV heads of one layer that compete for slots.

    Attributes:
        tokens: they; `heads`, `keys`, `values`, `positions` and `signals` are theirs.
        layer: index among the full-attention layers.
        seen: tokens of the sequence so far; `(batch, 1, 1)` where sequences are padded.
        budgets: tokens that each head may keep.

    Of a quantised cache, keys and values come in its turned basis: products and norms are as ever,
    single channels are not.
    """

    tokens: Tokens
    layer: int
    seen: int | Tensor
    budgets: tuple[int, ...]

    @property
    def heads(self) -> tuple[int, ...]:
        return self.tokens.heads

    @property
    def keys(self) -> Tensor:
        return self.tokens.keys

    @property
    def values(self) -> Tensor:
        return self.tokens.values

    @cached_property
    def positions(self) -> Tensor:
        """`(batch, heads, tokens)` int64, as indices are."""
        return self.tokens.positions.long()

    @property
    def signals(self) -> dict[str, Tensor]:
        """Numbers of the policy's signals under their names, `(batch, heads, tokens)` each."""
        return self.tokens.signals

    def protect(self, scores: Tensor, recent: int = 1, sinks: int = SINKS) -> Tensor:
        """Lift the first `sinks` and the last `recent` tokens above every score, drop padding."""
        keep = (self.positions < sinks) | (self.positions >= self.seen - recent)
        scores = scores.masked_fill(keep, float("inf"))
        return scores.masked_fill(self.positions < 0, float("-inf"))


class Policy:
    """Base of all methods: what it watches, what each head may keep, what each token is worth.

    The cache asks for `budgets` once the prompt's length is known, then for the `signals` of each
    layer; whenever tokens have to go, it asks for scores and keeps the best.

    Attributes:
        relative_positions: whether positions are those inside the cache.
        phi: first position of the target (Group Position Encoding); None leaves positions alone.
        unrotates: whether signals see keys or queries as they were before their rotation.
        sees_input: whether signals see what attention is given.
        holds_context: whether the whole context is held until `finish` compresses it.
        bounded: an entry of `kvbudget.cache.budget.BOUNDED`, which the cache's plan sets. A method
            need not think of what follows the context where that stands on top of the budget.
    """

    relative_positions = False
    phi: int | None = None
    unrotates = False
    sees_input = False
    holds_context = False
    bounded = "always"

    @property
    def moves_keys(self) -> bool:
        """Whether keys are moved to other positions."""
        return self.relative_positions or self.phi is not None

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        """Tokens that each KV head of each full-attention layer may keep, `budget` on average."""
        return [[budget] * geometry.kv_heads for _ in geometry.layers]

    def signals(self, layer: int) -> Sequence[Signal]:
        """What the scores of a layer need beside keys and values: new signals at each call."""
        return ()

    def score(self, candidates: Candidates) -> Tensor:
        """Worth of each candidate, `(batch, heads, tokens)` float32; the highest are kept."""
        raise NotImplementedError(f"{type(self).__name__} must define score or score_layer")

    def score_layer(self, candidates: list[Candidates]) -> list[Tensor]:
        """Scores of all heads of a layer, for methods whose heads decide together."""
        return [self.score(each) for each in candidates]

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        """Budgets of a layer's heads once this prompt's scores are known; their sum stays.

        `scores` holds `(batch, tokens)` for each KV head.
        """
        return budgets

    def share_out(self, scores: list[Tensor], budgets: list[int]) -> list[int]:
        """Budgets of all heads of all layers by the scores of a context that was held as a whole,
        `(1, tokens)` each; their sum stays."""
        return budgets

    def finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: Cache,
        ids: list[int],
    ) -> None:
        """What is to be done once a context, `ids`, has been read as a whole; nothing for most."""
