"""What stands on top of a compressed context: attended to as by the masked oracle, never evicted,
and shared by rows that know nothing of each other."""

import pytest
import torch
from oracle import Oracle
from tiny import VOCABULARY, calibration_of, tiny_model
from torch.testing import assert_close

from kvbudget import UserError, attach, make_cache
from kvbudget.cache import tails
from kvbudget.cache.budget import SINKS
from kvbudget.cache.quantize import Codec, Coding
from kvbudget.cache.tails import Seats, Shared, Tail, Window, attend_on_top

KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
METHODS = {
    "full": {"method": "full", "budget": None},
    "full-phi": {"method": "full", "budget": None, "phi": 9},
    "h2o": {"method": "h2o"},
    "streaming": {"method": "streaming-llm"},
    "streaming-absolute": {"method": "streaming-llm", "positions": "absolute"},
    "snapkv": {"method": "snapkv", "safeguard": 0.2},
    "pyramidkv": {"method": "pyramidkv"},
    "tova": {"method": "tova"},
    "expected-attention": {"method": "expected-attention"},
    "keydiff": {"method": "keydiff"},
    "head-aware": {"method": "head-aware", "safeguard": 0.5},
    "kvzap": {"method": "kvzap"},
}
CONTEXT, BUDGET = 50, 16
ROWS = [9, 3, 14]  # tokens of rows on top


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


def cache_for(model, method: str, **options):
    options = {"budget": BUDGET, "bounded": "context", **METHODS[method], **options}
    if options["method"] in ("head-aware", "kvzap"):
        options["calibration"] = calibration_of(model)
    return make_cache(model, **options)


def compressed(model, method: str = "h2o", **options):
    """A cache of a method that has read a context."""
    cache = cache_for(model, method, **{"prompt_tokens": CONTEXT, **options})
    model(tokens(CONTEXT), past_key_values=cache)
    return cache


def read_rows(model, cache, rows: list[torch.Tensor], start: int) -> list[torch.Tensor]:
    """Logits of rows that are padded on the right to the longest."""
    width = max(row.shape[1] for row in rows)
    ids = torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows])
    positions = start + torch.arange(width).expand(len(rows), -1).clone()
    places = positions.clone()
    for row, place in zip(rows, places, strict=True):
        place[row.shape[1] :] = -1
    cache.expect(places)
    logits = model(ids, position_ids=positions, past_key_values=cache).logits
    return [own[: row.shape[1]] for own, row in zip(logits, rows, strict=True)]


class OnTop(Oracle):
    """Sees of the context what is kept, and all that follows it."""

    def visible(self, layer: int, head: int, new: int) -> torch.Tensor:
        mask = torch.ones(new, self.seen + new, dtype=torch.bool).tril(self.seen)
        evicted = torch.arange(self.seen + new) < CONTEXT
        evicted[self.kept[layer][head]] = False
        return mask & ~evicted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "full-phi"])
def test_rows_on_top_attend_as_the_masked_oracle_does_to_each(kind, method):
    """Also past the end of a sliding window, and where padding lies between a row's tokens."""
    model, stock = attach(tiny_model(kind)), tiny_model(kind)
    if kind == "gemma3_text":
        frequencies = stock.base_model.rotary_emb.full_attention_inv_freq
        stock.base_model.rotary_emb.inv_freq = frequencies  # where the oracle looks for them
    cache = compressed(model, method)
    first = Oracle(stock)
    first.forward(tokens(CONTEXT), make_cache(model, "full"))
    rows = [tokens(count, seed=count) for count in ROWS]
    steps = [[tokens(1, seed=20 * step + row) for row in range(3)] for step in range(4)]
    ours = read_rows(model, cache, rows, CONTEXT)
    decoded = []
    for step, new in enumerate(steps):
        starts = torch.tensor([[CONTEXT + count + step] for count in ROWS])
        cache.expect(starts)
        ids = torch.cat(new)
        decoded.append(model(ids, position_ids=starts, past_key_values=cache).logits)
    for row, ids in enumerate(rows):
        oracle = OnTop(stock, relative=method == "streaming")
        oracle.restore(first.snapshot())
        expected = oracle.forward(ids, cache)[0]
        assert_close(ours[row], expected, atol=1e-5, rtol=1e-5)
        for step, new in enumerate(steps):
            expected = oracle.forward(new[row], cache)[0]
            assert_close(decoded[step][row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [None, 4])
def test_nothing_of_the_context_goes_for_what_follows_it(method, bits):
    if bits and method in ("streaming", "full-phi"):
        bits, method = 4, "streaming-absolute"  # keys that move are not to be had in few bits
    model = attach(tiny_model())
    cache = compressed(model, method, bits=bits)
    before = [list(map(torch.Tensor.tolist, each.kept_positions())) for each in cache.budgeted]
    model(tokens(20, 1), past_key_values=cache)
    held = cache.allocated_bytes()
    for seed in range(30):
        model(tokens(1, seed), past_key_values=cache)
    after = [list(map(torch.Tensor.tolist, each.kept_positions())) for each in cache.budgeted]
    assert after == before
    assert cache.allocated_bytes() == held
    assert cache.get_seq_length() == CONTEXT + 50
    if method.startswith("streaming"):
        assert before[0][0][SINKS:] == list(range(CONTEXT - len(before[0][0]) + SINKS, CONTEXT))


def test_a_row_of_the_target_is_numbered_from_phi():
    model = attach(tiny_model())
    cache = compressed(model, "full-phi")
    ours = read_rows(model, cache, [tokens(count, count) for count in ROWS], CONTEXT)
    for logits, count in zip(ours, ROWS, strict=True):
        ids = torch.cat((tokens(CONTEXT), tokens(count, count)), dim=1)
        positions = torch.cat((torch.arange(CONTEXT), 9 + torch.arange(count)))[None]
        expected = tiny_model()(ids, position_ids=positions).logits[0, CONTEXT:]
        assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_generate_goes_on_on_top_of_the_context(kind):
    """Each of two contexts of a batch as alone, and with all kept as a stock model."""
    model = attach(tiny_model(kind))
    both = torch.cat((tokens(CONTEXT), tokens(CONTEXT, 1)))
    greedy = {"max_new_tokens": 20, "do_sample": False}
    cache = make_cache(model, "h2o", "30%", bounded="context")
    together = model.generate(both, past_key_values=cache, **greedy)
    assert {len(own) for layer in cache.budgeted for own in layer.store.slots.positions} == {48}
    for ids, expected in zip(both, together, strict=True):
        cache = make_cache(model, "h2o", "30%", bounded="context")
        assert torch.equal(model.generate(ids[None], past_key_values=cache, **greedy)[0], expected)
    stock = tiny_model(kind)
    if kind == "gemma2":
        stock.set_attn_implementation("eager")  # SDPA leaves out the soft cap
    cache = make_cache(model, "h2o", "100%", bounded="context")
    expected = stock.generate(both, **greedy)
    assert torch.equal(model.generate(both, past_key_values=cache, **greedy), expected)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_rows_that_were_chosen_or_come_back_know_nothing_of_each_other(kind):
    model = attach(tiny_model(kind))
    cache = compressed(model)
    rows = [tokens(count, count) for count in ROWS]
    read_rows(model, cache, rows, CONTEXT)
    state = cache.snapshot()

    def following(seed: int, chosen: list[int]) -> torch.Tensor:
        starts = torch.tensor([[CONTEXT + ROWS[row]] for row in chosen])
        cache.expect(starts)
        ids = tokens(len(chosen), seed).T
        return model(ids, position_ids=starts, past_key_values=cache).logits

    expected = following(5, [0, 1, 2])
    mine = cache.snapshot()  # one token further
    cache.restore(state)
    following(6, [0, 1, 2])
    cache.restore(state)
    cache.batch_select_indices(torch.tensor([2, 0, 2]))
    chosen = following(5, [2, 0, 2])
    assert_close(chosen[2], expected[2], atol=1e-5, rtol=1e-5)
    cache.restore(state)
    assert_close(following(5, [0, 1, 2]), expected, atol=0, rtol=0)
    again = [following_after(model, cache, mine) for _ in range(2)]
    assert_close(*again, atol=0, rtol=0)
    cache.reset()
    assert cache.get_seq_length() == 0


def following_after(model, cache, state) -> torch.Tensor:
    cache.restore(state)
    starts = torch.tensor([[CONTEXT + count + 1] for count in ROWS])
    cache.expect(starts)
    return model(tokens(3, 7).T, position_ids=starts, past_key_values=cache).logits


# Attention alone, against loops.


def naive(query, key, value, hidden, softcap) -> torch.Tensor:
    """One query, `(head_dim,)`, over `(tokens, head_dim)`."""
    logits = key @ query
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("block", [2**18, 40])
@pytest.mark.parametrize(
    ("softcap", "window", "bits"), [(None, None, None), (2.0, 6, None), (None, None, 4)]
)
def test_rows_of_several_contexts_and_ragged_heads(monkeypatch, block, softcap, window, bits):
    monkeypatch.setattr(tails, "BLOCK", block)
    torch.manual_seed(0)
    contexts, heads, group, new, dim = 2, 3, 2, 4, 16
    rows, positions = 4, torch.tensor([[20, 21, 22, 23], [20, 21, -1, -1]] * 2)
    shared, held = [], {}
    for own, count in (((0, 2), 12 if window is None else 8), ((1,), 8)):
        key, value = torch.randn(2, contexts, len(own), count, dim)
        part = Shared(own, key, value)
        if bits:
            codec = Codec(bits, None, dim)
            turned = codec.turn(key)
            coding = Coding(codec, torch.zeros(contexts, heads, 1, dim))
            part = Shared(own, *coding.encode(turned, codec.turn(value), list(own)), coding)
            key = codec.turn_back(coding.decode_keys(part.keys, list(own)))
            value = codec.turn_back(coding.decode_values(part.values))
        shared.append(part)
        held |= {head: (key[:, i], value[:, i]) for i, head in enumerate(own)}
    query = torch.randn(rows, heads * group, new, dim)
    tail = Tail()
    tail.expected = positions
    tail.append(*torch.randn(2, rows, heads, new, dim), seen=20)
    places = torch.arange(12, 20)
    terms = {"scaling": 0.5, "softcap": softcap}
    if window is not None:
        terms["window"] = Window(window, places.expand(contexts, -1))
    seats = Seats.even(contexts, rows, query.device)
    output = attend_on_top(query, shared, tail, seats, **terms)
    for row, head, i in torch.cartesian_prod(*map(torch.arange, (rows, heads * group, new))):
        if (now := positions[row, i]) < 0:
            assert output[row, head, i].isfinite().all()
            continue
        key, value = (each[row // 2] for each in held[int(head) // group])
        far = torch.zeros(len(key), dtype=torch.bool) if window is None else places <= now - window
        own = (positions[row] < 0) | (positions[row] > now)
        own = own if window is None else own | (positions[row] <= now - window)
        expected = naive(
            query[row, head, i] * 0.5,
            torch.cat((key, tail.keys[row, head // group, :new])),
            torch.cat((value, tail.values[row, head // group, :new])),
            torch.cat((far, own)),
            softcap,
        )
        assert_close(output[row, head, i], expected, atol=1e-5, rtol=1e-5)


# What is refused.


def test_what_cannot_stand_on_top_is_refused():
    model = attach(tiny_model())
    with pytest.raises(UserError, match="bounded must be one of always, context, not 'all'"):
        make_cache(model, "h2o", BUDGET, bounded="all")
    cache = make_cache(model, "h2o", BUDGET, bounded="context", prompt_tokens=CONTEXT)
    with pytest.raises(
        UserError, match="a context of 50 tokens ends among the 60 that come after 0"
    ):
        model(tokens(60), past_key_values=cache)
    with pytest.raises(UserError, match="has been read and compressed"):
        cache.expect(torch.zeros(1, 1))
    always = compressed(model, bounded="always")
    with pytest.raises(UserError, match="bounded='context'"):
        always.expect(torch.zeros(1, 1))
    with pytest.raises(UserError, match="made for one batch"):
        compressed(model).batch_select_indices(torch.tensor([0, 0]))
    cache = compressed(model)
    model(tokens(2).T, past_key_values=cache)
    with pytest.raises(UserError, match="3 rows follow a context with 2 rows on top"):
        model(tokens(3).T, past_key_values=cache)
    with pytest.raises(UserError, match="on top of a context cannot be taken back"):
        cache.crop(-1)
    cache = make_cache(model, "h2o", BUDGET, bounded="context")
    model(tokens(40).view(2, 20), past_key_values=cache)
    with pytest.raises(UserError, match="2 contexts cannot be shared by 3 rows"):
        model(tokens(3).T, past_key_values=cache)


def test_padding_and_masks_are_refused_on_top():
    model = attach(tiny_model())
    mask = torch.ones(1, CONTEXT + 2, dtype=torch.long)
    mask[:, CONTEXT] = 0
    with pytest.raises(UserError, match="bounded: context takes sequences of one length"):
        model(tokens(2), attention_mask=mask, past_key_values=compressed(model))
    padded = torch.ones(1, CONTEXT + 1, dtype=torch.long)
    padded[:, :3] = 0
    cache = make_cache(model, "h2o", BUDGET, bounded="context")
    model(tokens(CONTEXT), attention_mask=padded[:, :-1], past_key_values=cache)
    with pytest.raises(UserError, match="bounded: context takes sequences of one length"):
        model(tokens(1), attention_mask=padded, past_key_values=cache)
    tree = torch.ones(1, 1, 2, CONTEXT + 2, dtype=torch.bool)
    with pytest.raises(UserError, match="no mask of your own"):
        model(tokens(2), attention_mask=tree, past_key_values=compressed(model))


def test_assisted_decoding_is_refused_on_top():
    model = attach(tiny_model())
    cache = make_cache(model, "full", bounded="context")
    with pytest.raises(UserError, match="takes back tokens on top of the context"):
        cache.activate_past_recording()
