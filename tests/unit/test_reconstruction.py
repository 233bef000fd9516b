"""KVzip: scores are its definition's, all heads share one total, and what is kept attends right."""

import pytest
import torch
from oracle import Oracle
from tiny import tiny_model
from torch.testing import assert_close

from kvbudget import UserError, attach, make_cache, reconstruction
from kvbudget.attention import attention_maxima
from kvbudget.cache.plan import MINIMUM
from kvbudget.models.random import byte_tokenizer
from kvbudget.reconstruction import FIRST, LATER, reconstruct, repetitions

TOKENIZER = byte_tokenizer()
CONTEXT = TOKENIZER.encode("In the beginning God created the heaven and the earth.")


def model_of(kind: str) -> torch.nn.Module:
    model = tiny_model(kind)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(TOKENIZER), mean_resizing=False)
    return model.requires_grad_(False)


def compressed(model, budget: int, **options):
    cache = make_cache(model, "kvzip", budget, **options)
    model(torch.tensor([CONTEXT]), past_key_values=cache)
    reconstruct(model, TOKENIZER, cache, CONTEXT)
    return cache


def test_the_best_tokens_of_all_heads_are_those_attended_to_most_by_the_repetition():
    stock = model_of("llama")
    stock.set_attn_implementation("eager")
    ((chunk, repetition),) = repetitions(TOKENIZER, CONTEXT)
    assert chunk == slice(0, len(CONTEXT))
    maps = stock(torch.tensor([CONTEXT + repetition]), output_attentions=True).attentions
    most = torch.stack([m[0, :, len(CONTEXT) :, : len(CONTEXT)].amax(dim=1) for m in maps])
    most = most.unflatten(1, (3, 2)).amax(dim=2)  # (layers, kv_heads, tokens)
    most[..., :4] = most[..., -1:] = torch.inf
    sure = most.topk(MINIMUM, dim=-1).indices
    most.scatter_(-1, sure, torch.inf)
    budget = 16
    wanted = torch.zeros(most.numel(), dtype=torch.bool)
    wanted[most.flatten().topk(budget * 12).indices] = True

    cache = compressed(attach(stock), budget)
    got = torch.zeros_like(most, dtype=torch.bool)
    for layer, heads in enumerate(each.kept_positions() for each in cache.budgeted):
        for head, positions in enumerate(heads):
            got[layer, head, positions] = True
    assert torch.equal(got.flatten(), wanted)
    assert len(set(got.sum(dim=-1).flatten().tolist())) > 1  # heads keep unlike numbers


def test_attention_outside_the_chunk_is_left_out_but_for_the_sinks():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 5, 8, generator=generator)
    key = torch.randn(1, 3, 20, 8, generator=generator)
    logits = query @ key.repeat_interleave(2, dim=1).mT
    hidden = torch.ones(5, 20, dtype=torch.bool).triu(16)
    wanted = logits.masked_fill(hidden, -torch.inf).softmax(-1).unflatten(1, (3, 2)).amax((2, 3))
    assert_close(attention_maxima(query, key, scaling=1.0), wanted)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("chunk", [2048, 20])
def test_what_is_kept_attends_as_the_masked_oracle(monkeypatch, kind, chunk):
    """With sliding layers and soft caps, too; the repetition leaves no trace in any layer."""
    monkeypatch.setattr(reconstruction, "CHUNK", chunk)
    model, stock = attach(model_of(kind)), model_of(kind)
    oracle = Oracle(stock)
    context = torch.tensor([CONTEXT])
    cache = make_cache(model, "kvzip", 16, stride=1)
    wanted = oracle.forward(context, cache)
    assert_close(model(context, past_key_values=cache).logits, wanted)
    assert {len(kept) for layer in cache.budgeted for kept in layer.kept_positions()} == {
        len(CONTEXT)
    }
    reconstruct(model, TOKENIZER, cache, CONTEXT)
    budgets = [len(kept) for layer in cache.budgeted for kept in layer.kept_positions()]
    assert sum(budgets) == 16 * len(budgets)
    state, known = cache.snapshot(), oracle.snapshot()
    for _ in range(2):  # the same again from a snapshot
        for new in (context[:, 3:9], *context[:, 9:24].split(1, dim=1)):
            wanted = oracle.forward(new, cache)
            assert_close(model(new, past_key_values=cache).logits, wanted, rtol=2e-4, atol=2e-4)
        kept = [kept for layer in cache.budgeted for kept in layer.kept_positions()]
        assert [len(each) for each in kept] == budgets
        newest = len(CONTEXT) + 21 - 1
        assert all(newest in each and set(range(4)) <= set(each.tolist()) for each in kept)
        cache.restore(state)
        oracle.restore(known)


def test_a_long_context_is_repeated_in_chunks_with_a_cue(monkeypatch):
    monkeypatch.setattr(reconstruction, "CHUNK", 20)
    parts = list(repetitions(TOKENIZER, CONTEXT))
    assert [i for chunk, _ in parts for i in range(len(CONTEXT))[chunk]] == [*range(len(CONTEXT))]
    texts = [TOKENIZER.decode(repetition, skip_special_tokens=True) for _, repetition in parts]
    words = TOKENIZER.decode(CONTEXT, skip_special_tokens=True)
    assert texts[0] == f"{FIRST}\n{words[:19]}"
    assert texts[1] == f"{LATER}{words[11:19]}\n{words[19:39]}"


def test_a_quantised_cache_is_repeated_too():
    cache = compressed(attach(model_of("llama")), 16, bits=8)
    kept = [len(each) for layer in cache.budgeted for each in layer.kept_positions()]
    assert sum(kept) > 16 * len(kept)


def test_holding_the_context_and_evicting_as_it_comes_exclude_each_other():
    with pytest.raises(UserError, match=r"'kvzip' holds the whole context .* prefill_chunk"):
        make_cache(attach(model_of("llama")), "kvzip", 16, prefill_chunk=8)
