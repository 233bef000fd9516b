"""Decode steps of one layer against naive references: lists of tokens, one head at a time."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kvbudget.cache.budget import Geometry
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.positions import Rotation
from kvbudget.cache.ragged import attend_slots
from kvbudget.cache.slots import Slots, Tokens
from kvbudget.policies.make import make_policy

KV_HEADS, GROUP, DIM = 3, 2, 8
PROMPT, STEPS, BUDGET = 30, 25, 12


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(1, *shape, DIM, generator=torch.Generator().manual_seed(seed))


class NaiveHead:
    """One KV head as a list of `[position, key, value, attention received]`."""

    def __init__(self, method: str, stride: int) -> None:
        self.method, self.stride, self.tokens = method, stride, []

    def see(self, queries, keys, values) -> torch.Tensor:
        """Attend with `(GROUP, new, DIM)` queries, then evict. Returns outputs of that shape."""
        known, new = len(self.tokens), keys.shape[0]
        first = self.tokens[-1][0] + 1 if self.tokens else 0
        for i in range(new):
            self.tokens.append([first + i, keys[i], values[i], 0.0])
        outputs = torch.zeros_like(queries)
        for i in range(new):
            visible = self.tokens[: known + i + 1]
            for g in range(GROUP):
                logits = [float(queries[g, i] @ token[1]) / math.sqrt(DIM) for token in visible]
                weights = torch.tensor(logits).softmax(0).tolist()
                for token, weight in zip(visible, weights, strict=True):
                    outputs[g, i] += weight * token[2]
                    token[3] += weight
        excess = len(self.tokens) - BUDGET
        if excess > 0 and (new > 1 or excess >= self.stride):
            order = sorted(self.tokens, key=self._worth, reverse=True)[:BUDGET]
            self.tokens = sorted(order, key=lambda token: token[0])
        return outputs

    def _worth(self, token) -> float:
        position, key, _, received = token
        newest = max(each[0] for each in self.tokens)
        recent = {"h2o": BUDGET // 2, "streaming-llm": 1, "head-aware": 4}[self.method]
        sinks = 0 if self.method == "h2o" else 4
        if position < sinks or position > newest - recent:
            return math.inf
        if self.method == "h2o":
            return received
        if self.method == "streaming-llm":
            return position
        directions = torch.stack([each[1] / each[1].norm() for each in self.tokens])
        return 1 - float(directions.mean(0) @ key / directions.mean(0).norm() / key.norm())


@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("h2o", {}),
        ("streaming-llm", {"positions": "absolute"}),
        ("head-aware", {"safeguard": 1.0, "recent": 4}),
    ],
)
def test_a_layer_decodes_as_naive_lists_do(method, options, stride):
    geometry = Geometry((0,), KV_HEADS, KV_HEADS * GROUP, DIM)
    plan = Plan(make_policy(method, **options), geometry, BUDGET)
    layer = BudgetedLayer(0, KV_HEADS, LayerOptions(plan, stride))
    heads = [NaiveHead(method, stride) for _ in range(KV_HEADS)]
    for step, new in enumerate([PROMPT, *[1] * STEPS, 7, *[1] * STEPS]):
        query = drawn(KV_HEADS * GROUP, new, seed=3 * step)
        key, value = (drawn(KV_HEADS, new, seed=3 * step + i) for i in (1, 2))
        layer.update(key, value)
        output = layer.attend(query, 1 / math.sqrt(DIM), None, None)
        for h, head in enumerate(heads):
            own = slice(h * GROUP, (h + 1) * GROUP)
            expected = head.see(query[0, own], key[0, h], value[0, h])
            torch.testing.assert_close(output[0, own], expected, atol=1e-5, rtol=1e-5)
        kept = [positions.tolist() for positions in layer.kept_positions()]
        assert kept == [[token[0] for token in head.tokens] for head in heads]


class UnevenThenEven(Policy):
    """Recency, with budgets that are uneven after the first block and even after the next."""

    def __init__(self) -> None:
        self.shares = iter([[9, 18, 9], [12, 12, 12], [12, 12, 12]])

    def redistribute(self, layer: int, scores: list, budgets: list[int]) -> list[int]:
        return next(self.shares)

    def score(self, candidates: Candidates) -> torch.Tensor:
        return candidates.protect(candidates.positions.float())


def test_heads_that_come_to_be_equally_long_keep_their_own_tokens():
    geometry = Geometry((0,), KV_HEADS, KV_HEADS * GROUP, DIM)
    layer = BudgetedLayer(0, KV_HEADS, LayerOptions(Plan(UnevenThenEven(), geometry, BUDGET)))
    key, value = (drawn(KV_HEADS, 71, seed=seed) for seed in (1, 2))
    query = drawn(KV_HEADS * GROUP, 71, seed=3)
    seen = 0
    for new in (PROMPT, 20, 20, 1):
        part = slice(seen, seen + new)
        before = layer.kept_positions()
        layer.update(key[:, :, part], value[:, :, part])
        output = layer.attend(query[:, :, part], 1.0, None, None)
        seen += new
        for head in range(KV_HEADS):
            own = slice(head * GROUP, (head + 1) * GROUP)
            visible = torch.cat((before[head], torch.arange(seen - new, seen)))
            weights = (query[0, own, seen - 1] @ key[0, head, visible].T).softmax(-1)
            torch.testing.assert_close(output[0, own, -1], weights @ value[0, head, visible])


def ragged_slots(dtype=torch.float32) -> Slots:
    """Two segments whose heads are not in order, with free slots that hold garbage."""
    slots = Slots([((0, 2), 9), ((1,), 5)], torch.empty(2, DIM, dtype=dtype), ())
    for flat in (slots.keys, slots.values):
        flat.fill_(float("nan"))
    for segment, count in zip(slots.segments, (6, 5), strict=True):
        size = (2, len(segment.heads), count)
        key, value = (torch.randn(*size, DIM).to(dtype) for _ in "kv")
        slots.append(segment, Tokens(segment.heads, key, value, torch.zeros(size), {}))
    return slots


def by_head(query: torch.Tensor, slots: Slots) -> torch.Tensor:
    output = torch.empty_like(query)
    for held in slots.tokens():
        for i, head in enumerate(held.heads):
            for batch in range(query.shape[0]):
                own = slice(head * GROUP, (head + 1) * GROUP)
                weights = (query[batch, own, 0] @ held.keys[batch, i].T).softmax(-1)
                output[batch, own, 0] = weights @ held.values[batch, i]
    return output


def test_ragged_heads_attend_each_to_their_own_tokens():
    slots, query = ragged_slots(), torch.randn(2, KV_HEADS * GROUP, 1, DIM)
    output, _ = attend_slots(query, slots, scaling=1.0, softcap=None, padded=False)
    torch.testing.assert_close(output, by_head(query, slots), atol=1e-5, rtol=1e-5)


def test_moved_keys_equal_keys_rotated_at_the_new_position():
    frequencies = 10000 ** -(torch.arange(0, DIM, 2) / DIM)
    raw = drawn(1, 5, seed=0)

    def at(start: int) -> torch.Tensor:
        angles = torch.arange(start, start + 5)[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)[None]
        return apply_rotary_pos_emb(raw, raw, angles.cos(), angles.sin())[1]

    rotation = Rotation(frequencies)
    torch.testing.assert_close(rotation.move(at(3), 40), at(43), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotation.move(at(50), -47), at(3), atol=1e-5, rtol=1e-5)
