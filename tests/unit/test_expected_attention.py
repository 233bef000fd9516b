"""Expected Attention: its scores by a stock model's queries, and what the cache keeps by them."""

import pytest
import torch
from oracle import Oracle
from tiny import VOCABULARY, tiny_model
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.streaming import StreamingCache

COUNT, BUDGET = 60, 20


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"))


def published(kind: str, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """Scores `(kv_heads, tokens)` of the full-attention layers, one head and formula at a time."""
    stock, cache, queries = tiny_model(kind), DynamicCache(), {}
    for index, layer in enumerate(stock.model.layers):
        attention = layer.self_attn
        # What is rotated: after the norm of queries, where there is one.
        module = getattr(attention, "q_norm", attention.q_proj)
        module.register_forward_hook(
            lambda _, __, output, index=index: queries.update({index: output})
        )
    stock(ids, past_key_values=cache)
    count, scores = ids.shape[1], {}
    for index, layer in enumerate(stock.model.layers):
        if getattr(layer.self_attn, "sliding_window", None):
            continue
        own = queries[index][0]
        own = own.transpose(0, 1) if kind.startswith("gemma3") else own.view(count, 6, -1)
        head_dim, scaling = own.shape[-1], layer.self_attn.scaling
        future = torch.arange(count, count + 512)[None]
        kinds = {"layer_type": "full_attention"} if kind.startswith("gemma3") else {}
        cos, sin = stock.model.rotary_emb(own, future, **kinds)
        unit = torch.eye(head_dim)[None, :, None].expand(-1, -1, 512, -1)
        average = apply_rotary_pos_emb(unit, unit, cos, sin)[0][0].mean(dim=1).T
        keys, values = cache.layers[index].keys[0], cache.layers[index].values[0]
        scores[index] = torch.zeros(3, count)
        for head in range(6):
            seen = own[4:, head]
            mean = average @ seen.mean(dim=0)
            covariance = average @ torch.cov(seen.T, correction=0) @ average.T
            k = keys[head // 2, 4:]
            logits = scaling * k @ mean + scaling**2 / 2 * torch.einsum(
                "ni,ij,nj->n", k, covariance, k
            )
            weights = logits.softmax(0) * values[head // 2, 4:].norm(dim=-1)
            scores[index][head // 2, 4:] += weights / 2
    return scores


def test_epsilon_lets_the_norms_of_values_decide_among_the_others(model):
    ids = tokens(COUNT)
    everything = make_cache(model, "full")
    model(ids, past_key_values=everything)
    cache = make_cache(model, "expected-attention", BUDGET, epsilon=0.02)
    model(ids, past_key_values=cache)
    plain = make_cache(model, "expected-attention", BUDGET)
    model(ids, past_key_values=plain)
    moved = 0
    for index, scores in published("llama", ids).items():
        (held,) = everything.layers[index].store.slots.tokens()
        scores = scores + 0.02 * held.values[0].norm(dim=-1)
        for head, positions in enumerate(cache.kept_positions(index)):
            best = 4 + scores[head, 4 : COUNT - 1].topk(BUDGET - 5).indices.sort().values
            assert positions.tolist() == [0, 1, 2, 3, *best.tolist(), COUNT - 1]
            moved += positions.tolist() != plain.kept_positions(index)[head].tolist()
    assert moved


def test_adakv_over_it_spends_one_total_unevenly(model):
    cache = make_cache(model, "expected-attention", BUDGET, safeguard=0.2)
    model(tokens(COUNT), past_key_values=cache)
    counts = [[len(own) for own in cache.kept_positions(layer)] for layer in range(4)]
    assert all(sum(own) == 3 * BUDGET for own in counts)
    assert any(len(set(own)) > 1 for own in counts)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_it_keeps_the_tokens_of_the_highest_published_scores(kind):
    model, ids = attach(tiny_model(kind)), tokens(COUNT)
    expected = published(kind, ids)
    cache = make_cache(model, "expected-attention", BUDGET)
    model(ids, past_key_values=cache)
    assert expected
    for index, scores in expected.items():
        for head, positions in enumerate(cache.kept_positions(index)):
            best = 4 + scores[head, 4 : COUNT - 1].topk(BUDGET - 5).indices.sort().values
            assert positions.tolist() == [0, 1, 2, 3, *best.tolist(), COUNT - 1]
        (held,) = cache.layers[index].store.slots.tokens()
        numbers = scores.gather(1, held.positions[0].long())
        assert_close(held.signals["expected"][0], numbers, atol=1e-6, rtol=1e-3)


def test_a_prompt_in_pieces_ends_with_the_statistics_of_all_of_it(model):
    ids = tokens(COUNT)
    whole = make_cache(model, "expected-attention", COUNT)
    model(ids, past_key_values=whole)
    pieces = make_cache(model, "expected-attention", COUNT, prompt_tokens=COUNT)
    for piece in ids.split([3, 20, 1, 36], dim=1):
        model(piece, past_key_values=pieces)
        pieces.restore(pieces.snapshot())
    for one, other in zip(whole.budgeted, pieces.budgeted, strict=True):
        wanted, got = (each.store.slots.tokens()[0].signals["expected"] for each in (one, other))
        assert_close(got, wanted, atol=1e-6, rtol=1e-3)
        assert one.signals[0].held_bytes() == other.signals[0].held_bytes() == 0


def test_chunks_inside_and_outside_of_a_forward_pass_evict_alike(model):
    ids = tokens(COUNT)
    inside = make_cache(model, "expected-attention", BUDGET, prefill_chunk=13)
    model(ids, past_key_values=inside)
    outside = make_cache(model, "expected-attention", BUDGET, prompt_tokens=COUNT)
    for piece in ids.split(13, dim=1):
        model(piece, past_key_values=outside)
    for layer in range(4):
        for mine, theirs in zip(
            inside.kept_positions(layer), outside.kept_positions(layer), strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_it_equals_the_masked_oracle(kind):
    """And after the prompt, a window of what follows is kept before what left it."""
    model = attach(tiny_model(kind))
    ours, oracle = make_cache(model, "expected-attention", BUDGET), Oracle(model)
    ids = tokens(90)
    for piece in ids.split([40, 7, *[1] * 43], dim=1):
        expected = oracle.forward(piece, ours)
        assert_close(model(piece, past_key_values=ours).logits, expected, atol=1e-5, rtol=1e-5)
    for layer in ours.budgeted:
        for positions in layer.kept_positions():
            assert len(positions) == BUDGET
            assert set(range(80, 90)) <= set(positions.tolist())
            assert all(position < 40 for position in positions[:-10].tolist())


def test_a_left_padded_batch_keeps_what_batches_of_one_keep(model):
    short, long = tokens(33, seed=1), tokens(40, seed=2)
    ids = torch.cat((torch.cat((torch.zeros(1, 7, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    together = make_cache(model, "expected-attention", BUDGET)
    model(ids, attention_mask=mask, past_key_values=together)
    for row, alone in enumerate((short, long)):
        single = make_cache(model, "expected-attention", BUDGET)
        model(alone, past_key_values=single)
        for layer in range(4):
            for mine, theirs in zip(
                together.kept_positions(layer), single.kept_positions(layer), strict=True
            ):
                assert torch.equal(mine[row], theirs)


def test_eight_bits_keep_nearly_the_same_tokens(model):
    ids = tokens(COUNT)
    exact = make_cache(model, "expected-attention", 39)
    stored = make_cache(model, "expected-attention", BUDGET, bits=8)
    kept = []
    for cache in (exact, stored):
        model(ids, past_key_values=cache)
        kept.append([own.tolist() for layer in range(4) for own in cache.kept_positions(layer)])
    budget = len(kept[1][0])
    assert BUDGET < budget <= 39
    assert all(len(set(one) & set(other)) >= budget - 1 for one, other in zip(*kept, strict=True))


def test_it_reads_a_source_as_it_comes(model):
    cache = make_cache(model, "expected-attention", BUDGET, prompt_tokens=COUNT)
    streaming = StreamingCache(cache)
    for piece in tokens(COUNT).split(6, dim=1):
        streaming.expect(6)
        model(piece, past_key_values=streaming)
    assert [len(own) for own in cache.kept_positions(0)] == [BUDGET] * 3


def test_positions_that_cannot_be_moved_are_refused():
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = attach(type(model)(model.config).eval())
    with pytest.raises(UserError, match=r"changes with the length .*another method"):
        make_cache(model, "expected-attention", BUDGET)
