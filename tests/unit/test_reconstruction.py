"""KVzip: scores are its definition's, all heads share one total, and what is kept attends right."""

import pytest
import torch
from oracle import Oracle
from tiny import tiny_model
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.attention import attention_maxima
from kvbudget.cache.budget import SINKS
from kvbudget.cache.streaming import StreamingCache
from kvbudget.policies import repetition as reconstruction
from kvbudget.policies.repetition import FIRST, LATER, reconstruct, repetitions
from kvbudget.prompts import prompt_frame
from kvbudget.sources.random import byte_tokenizer

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


@pytest.mark.parametrize("chunk", [2048, 20])
def test_the_best_tokens_of_all_heads_are_those_attended_to_most_by_the_repetition(
    monkeypatch, chunk
):
    """Scores by the definition, from a stock model's keys and queries: the most attention among
    the sinks, the chunk and the repetition."""
    monkeypatch.setattr(reconstruction, "CHUNK", chunk)
    stock = model_of("llama")
    seen = watch_attention(stock)
    most = torch.zeros(4, 3, len(CONTEXT))
    for part, repetition in repetitions(TOKENIZER, CONTEXT):
        seen.clear()
        stock(torch.tensor([CONTEXT + repetition]))
        for layer, (query, key, scaling) in enumerate(seen):
            new, sinks = len(repetition), min(4, part.start)
            columns = [*range(sinks), *range(part.start, part.stop)]
            columns += range(len(CONTEXT), len(CONTEXT) + new)
            keys = key[0].repeat_interleave(2, dim=0)[:, columns]
            logits = query[0, :, -new:] @ keys.mT * scaling
            hidden = torch.ones(new, new, dtype=torch.bool).triu(1)
            logits[:, :, -new:] = logits[:, :, -new:].masked_fill(hidden, -torch.inf)
            weights = logits.softmax(-1)[:, :, sinks:-new]
            most[layer, :, part] = weights.amax(dim=1).unflatten(0, (3, 2)).amax(dim=1)
    budget = 16
    most[..., :4] = torch.inf
    sure = most.topk(SINKS + budget // 2, dim=-1).indices  # sinks, and the window to come
    most.scatter_(-1, sure, torch.inf)
    wanted = torch.zeros(most.numel(), dtype=torch.bool)
    wanted[most.flatten().topk(budget * 12).indices] = True

    cache = compressed(attach(stock), budget)
    got = torch.zeros_like(most, dtype=torch.bool)
    for layer, heads in enumerate(each.kept_positions() for each in cache.budgeted):
        for head, positions in enumerate(heads):
            got[layer, head, positions] = True
    assert torch.equal(got.flatten(), wanted)
    assert len(set(got.sum(dim=-1).flatten().tolist())) > 1  # heads keep unlike numbers


@pytest.mark.parametrize("method", ["kvzip", "kvzip-plus"])
def test_a_floor_is_what_every_head_keeps_at_least(method):
    model = attach(model_of("llama"))
    least = {}
    for floor in (0.0, 0.75):
        cache = make_cache(model, method, 20, bounded="context", floor=floor)
        model(torch.tensor([CONTEXT]), past_key_values=cache)
        reconstruct(model, TOKENIZER, cache, CONTEXT)
        counts = [len(kept) for layer in cache.budgeted for kept in layer.kept_positions()]
        assert sum(counts) == 20 * len(counts)
        least[floor] = min(counts)
    assert least[0.0] < 15 <= least[0.75]


def watch_attention(model: torch.nn.Module) -> list:
    """Queries and keys of each layer of the last forward pass."""
    seen = []

    def attention(module, query, key, value, mask, scaling=None, **kwargs):
        seen.append((query, key, scaling))
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)

    AttentionInterface.register("watched", attention)
    AttentionMaskInterface.register("watched", sdpa_mask)
    model.set_attn_implementation("watched")
    return seen


def test_the_most_that_any_query_attends():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 5, 8, generator=generator)
    key = torch.randn(1, 3, 20, 8, generator=generator)
    logits = query @ key.repeat_interleave(2, dim=1).mT
    hidden = torch.ones(5, 20, dtype=torch.bool).triu(16)
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1).unflatten(1, (3, 2))
    assert_close(attention_maxima(query, key, scaling=1.0), weights.amax(dim=3))
    worth = torch.rand(1, 5, generator=generator)
    wanted = (weights * worth[0, :, None]).amax(dim=3)
    assert_close(attention_maxima(query, key, scaling=1.0, worth=worth), wanted)


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
        newest = set(range(len(CONTEXT) + 21 - 8, len(CONTEXT) + 21))
        assert all(newest | set(range(4)) <= set(each.tolist()) for each in kept)
        assert any(4 <= position < len(CONTEXT) for each in kept for position in each.tolist())
        cache.restore(state)
        oracle.restore(known)


def test_a_long_context_is_repeated_in_chunks_with_a_cue(monkeypatch):
    monkeypatch.setattr(reconstruction, "CHUNK", 20)
    parts = list(repetitions(TOKENIZER, CONTEXT))
    told = [i for chunk, _ in parts for i in range(len(CONTEXT))[chunk]]
    assert told == list(range(1, len(CONTEXT)))  # all but what opens a text
    texts = [TOKENIZER.decode(repetition) for _, repetition in parts]
    words = TOKENIZER.decode(CONTEXT, skip_special_tokens=True)
    assert texts[0] == f"{FIRST}\n{words[:20]}"
    assert texts[1] == f"{LATER}{words[12:20]}\n{words[20:40]}"


def test_what_opens_a_chat_is_not_repeated():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<{{ messages[0]['content'] }}>\nanswer:"
    head, _ = prompt_frame(tokenizer)
    said = tokenizer.encode("Let there be light", add_special_tokens=False)
    ((chunk, repetition),) = repetitions(tokenizer, head + said)
    assert chunk == slice(len(head), len(head + said))
    assert tokenizer.decode(repetition) == f"{FIRST}>\nanswer:Let there be light"


def test_a_quantised_cache_is_repeated_too():
    cache = compressed(attach(model_of("llama")), 16, bits=8)
    kept = [len(each) for layer in cache.budgeted for each in layer.kept_positions()]
    assert sum(kept) == cache.plan.codec.slots(16, numbers=1) * len(kept) < len(CONTEXT) * len(kept)


@pytest.mark.parametrize("budget", [16, "30%"])
def test_a_context_may_come_in_pieces(budget):
    """All of it is held until it is repeated, and a share is one of the whole."""
    model = attach(model_of("llama"))
    whole, pieces = compressed(model, budget), make_cache(model, "kvzip", budget)
    for piece in torch.tensor([CONTEXT]).split([13, 30, 12], dim=1):
        model(piece, past_key_values=pieces)
    reconstruct(model, TOKENIZER, pieces, CONTEXT)
    for one, other in zip(whole.budgeted, pieces.budgeted, strict=True):
        assert list(map(len, one.kept_positions())) == list(map(len, other.kept_positions()))
        assert all(map(torch.equal, one.kept_positions(), other.kept_positions()))


def test_a_budget_that_holds_everything_evicts_nothing():
    cache = compressed(attach(model_of("llama")), 70)
    assert {len(each) for layer in cache.budgeted for each in layer.kept_positions()} == {
        len(CONTEXT)
    }


def test_what_cannot_be_repeated_is_refused():
    model = attach(model_of("llama"))
    message = "does not hold these 55 tokens and nothing else"
    with pytest.raises(UserError, match=message):
        reconstruct(model, TOKENIZER, make_cache(model, "kvzip", 16), CONTEXT)
    with pytest.raises(UserError, match=message):
        reconstruct(model, TOKENIZER, compressed(model, 16), CONTEXT)
    cache = make_cache(model, "kvzip", 16)
    ids = torch.tensor([[0, *CONTEXT[:-1]]])
    model(ids, past_key_values=cache, attention_mask=ids > 0)
    with pytest.raises(UserError, match=message):
        reconstruct(model, TOKENIZER, cache, CONTEXT)
    with pytest.raises(UserError, match="only a cache of method 'kvzip'"):
        reconstruct(model, TOKENIZER, make_cache(model, "h2o", 16), CONTEXT)
    cache = make_cache(model, "kvzip", 16)
    model(torch.tensor([CONTEXT * 5]), past_key_values=cache)
    with pytest.raises(UserError, match="275 tokens and a repetition exceed the 512 tokens"):
        reconstruct(model, TOKENIZER, cache, CONTEXT * 5)
    with pytest.raises(UserError, match="cannot stream"):
        StreamingCache(make_cache(model, "kvzip", 16))


def test_holding_the_context_and_evicting_as_it_comes_exclude_each_other():
    with pytest.raises(UserError, match=r"'kvzip' holds the whole context .* prefill_chunk"):
        make_cache(attach(model_of("llama")), "kvzip", 16, prefill_chunk=8)
