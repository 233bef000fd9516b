"""What a policy sees and what it decides. A policy scores; the cache keeps the best."""

from dataclasses import dataclass

from torch import Tensor

from kvbudget.cache.plan import SINKS, Geometry
from kvbudget.cache.slots import Tokens

OBSERVATION = 32  # queries at the end of a prompt that the "window" signal sums over (SnapKV)


@dataclass
class Candidates(Tokens):
    """Tokens of some KV heads of one layer that compete for slots.

    Attributes:
        layer: index among the full-attention layers.
        seen: tokens of the sequence so far; `(batch, 1, 1)` where sequences are padded.
        budgets: tokens that each head may keep.

    Of a quantised cache, keys and values come in its turned basis: products and norms are as ever,
    single channels are not.
    """

    layer: int
    seen: int | Tensor
    budgets: tuple[int, ...]

    def protect(self, scores: Tensor, recent: int = 1, sinks: int = SINKS) -> Tensor:
        """Lift the first `sinks` and the last `recent` tokens above every score, drop padding."""
        keep = (self.positions < sinks) | (self.positions >= self.seen - recent)
        scores = scores.masked_fill(keep, float("inf"))
        return scores.masked_fill(self.positions < 0, float("-inf"))


class Policy:
    """Base of all methods: one uniform budget, kept by `score`.

    Attributes:
        signals: attention sums that the scores need: "attention" (over all queries) or "window"
            (over the last queries of the last long block, and those after it).
        relative_positions: whether positions are those inside the cache.
        reconstructs: whether the whole context is held until it has been repeated
            (`kvbudget.reconstruction`), and evicted from then.
        phi: first position of the target (Group Position Encoding); None leaves positions alone.
    """

    signals: frozenset[str] = frozenset()
    relative_positions = False
    reconstructs = False
    phi: int | None = None

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        """Tokens that each KV head of each full-attention layer may keep, `budget` on average."""
        return [[budget] * geometry.kv_heads for _ in geometry.layers]

    def sums(self, layer: int) -> frozenset[str]:
        """The attention sums that a layer's scores need."""
        return self.signals

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
