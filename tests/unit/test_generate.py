"""What transformers' `generate` asks of a cache: right, or refused in words."""

import copy

import pytest
import torch
from tiny import VOCABULARY, tiny_model

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.streaming import StreamingCache

KINDS = ("llama", "gemma3_text")
GREEDY = {"max_new_tokens": 24, "do_sample": False}


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"))


# A prompt that comes in pieces.


@pytest.mark.parametrize("method", ["h2o", "streaming-llm", "head-aware", "snapkv"])
def test_a_share_of_a_prompt_in_pieces_needs_its_length(model, method):
    ids = tokens(200)
    cache = make_cache(model, method, "20%")
    message = "took the first 100 tokens for the whole prompt, and 100 more .*prompt_tokens="
    with pytest.raises(UserError, match=message):
        model.generate(ids, past_key_values=cache, prefill_chunk_size=100, **GREEDY)
    told = make_cache(model, method, "20%", prompt_tokens=200)
    model.generate(ids, past_key_values=told, prefill_chunk_size=100, **GREEDY)
    kept = [len(own) for layer in told.budgeted for own in layer.kept_positions()]
    assert sum(kept) == 40 * len(kept)


def test_a_refused_piece_changes_nothing(model):
    cache = make_cache(model, "h2o", "20%")
    model(tokens(100), past_key_values=cache)
    with pytest.raises(UserError, match="budget '20%' took the first 100"):
        model(tokens(7, 1), past_key_values=cache)
    assert cache.get_seq_length() == 100
    model(tokens(1, 1), past_key_values=cache)
    assert [len(own) for own in cache.kept_positions(0)] == [20] * 3


def test_a_question_after_the_prompt_is_told_from_it(model):
    cache = make_cache(model, "h2o", "20%", prompt_tokens=100)
    for ids in (tokens(60), tokens(40, 1), tokens(9, 2), tokens(1, 3)):
        model(ids, past_key_values=cache)
    assert [len(own) for own in cache.kept_positions(0)] == [20] * 3


def test_a_target_that_is_numbered_apart_needs_the_length_of_its_source(model):
    """Told, the target's positions are phi, phi + 1, …, wherever a forward pass begins or ends."""
    cache = make_cache(model, "full", phi=5)
    model(tokens(20), past_key_values=cache)
    with pytest.raises(UserError, match="phi: 5 took the first 20 tokens"):
        model(tokens(4), past_key_values=cache)
    ids = tokens(30)
    positions = torch.cat((torch.arange(24), 5 + torch.arange(6)))[None]
    expected = tiny_model("llama")(ids, position_ids=positions).logits
    cache = make_cache(model, "full", phi=5, prompt_tokens=24)
    logits = [model(piece, past_key_values=cache).logits for piece in ids.split([15, 13, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-5, rtol=1e-5)


# Tokens that are taken back.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [None, 8])
def test_assisted_decoding_with_the_full_cache(kind, bits):
    model, stock = attach(tiny_model(kind)), tiny_model(kind)
    # Of its own text, so that guesses come true.
    ids = stock.generate(tokens(20), **GREEDY)
    plain = model.generate(ids, past_key_values=make_cache(model, "full", bits=bits), **GREEDY)
    cache = make_cache(model, "full", bits=bits)
    options = {"prompt_lookup_num_tokens": 3, **GREEDY}
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), plain)
    assert cache.get_seq_length() == plain.shape[1] - 1
    if bits is None:
        assert torch.equal(plain, stock.generate(ids, **options))


def test_assisted_decoding_is_refused_before_anything_is_computed():
    model = attach(tiny_model("llama"))
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model has run"))
    for method, options in [("h2o", {}), ("streaming-llm", {}), ("keydiff", {"bits": 4})]:
        cache = make_cache(model, method, 64, **options)
        with pytest.raises(UserError, match="assisted decoding takes tokens back"):
            model.generate(tokens(20), past_key_values=cache, prompt_lookup_num_tokens=3, **GREEDY)
    cache = make_cache(model, "full", phi=5)
    with pytest.raises(UserError, match="use phi: auto"):
        model.generate(tokens(20), past_key_values=cache, prompt_lookup_num_tokens=3, **GREEDY)


@pytest.mark.parametrize("method", ["full", "keydiff", "streaming-llm"])
def test_what_was_not_evicted_is_taken_back(model, method):
    budget = None if method == "full" else 40
    cropped, fresh = (make_cache(model, method, budget) for _ in "ab")
    model(tokens(30), past_key_values=cropped)
    state = cropped.snapshot()
    model(tokens(5, 1), past_key_values=cropped)
    cropped.crop(-5)
    model(tokens(30), past_key_values=fresh)
    for ids in (tokens(1, 2), tokens(15, 3)):
        expected = model(ids, past_key_values=fresh).logits
        assert torch.equal(model(ids, past_key_values=cropped).logits, expected)
    cropped.restore(state)
    assert cropped.get_seq_length() == 30
    if budget:
        model(tokens(20, 3), past_key_values=cropped)
        with pytest.raises(UserError, match="once others were evicted for them"):
            cropped.crop(-1)


def test_tokens_are_taken_back_in_all_layers_or_in_none():
    model = attach(tiny_model("gemma3_text"))
    cache = make_cache(model, "full")
    model(tokens(10), past_key_values=cache)
    cache.crop(-4)
    model(tokens(20), past_key_values=cache)
    with pytest.raises(UserError, match="once a sliding window has moved on"):
        cache.crop(-4)
    for wrong in (3, -27):
        with pytest.raises(UserError, match="from -26 to 0"):
            cache.crop(wrong)
    assert [layer.get_seq_length() for layer in cache.layers] == [26] * 4


def test_tokens_that_had_a_say_are_not_taken_back(model):
    cache = make_cache(model, "h2o", 40)
    model(tokens(30), past_key_values=cache)
    with pytest.raises(UserError, match="have had a say in what is evicted"):
        cache.crop(-1)
    cache.crop(0)
    assert cache.get_seq_length() == 30


# Batches and devices.


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([0])), "num_beams=1"),
        (lambda cache: cache.batch_repeat_interleave(2), "made for one batch"),
        (lambda cache: cache.batch_select_indices(torch.tensor([0])), "made for one batch"),
        (lambda cache: cache.offload(0), "stay on the model's device"),
        (lambda cache: cache.layers[0].prefetch(), "stay on the model's device"),
    ],
)
def test_what_is_not_done_is_refused_in_words(model, ask, message):
    cache = make_cache(model, "h2o", 16)
    model(tokens(30), past_key_values=cache)
    with pytest.raises(UserError, match=message):
        ask(cache)
    with pytest.raises(UserError, match=message):
        ask(StreamingCache(make_cache(model, "h2o", 16, prompt_tokens=30)))


def test_beams_are_refused(model):
    with pytest.raises(UserError, match="num_beams=1"):
        model.generate(
            tokens(20), past_key_values=make_cache(model, "full"), num_beams=2, max_new_tokens=3
        )


def test_several_samples_of_one_prompt_are_a_batch(model):
    cache = make_cache(model, "h2o", 16)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    assert model.generate(tokens(30), past_key_values=cache, **options).shape == (3, 36)
    assert cache.kept_positions(0)[0].shape == (3, 16)


@pytest.mark.parametrize("method", ["h2o", "streaming-llm", "head-aware"])
def test_a_copy_of_a_cache_goes_its_own_way(model, method):
    """`copy.deepcopy` is how transformers' users keep the cache of a common prompt."""
    cache = make_cache(model, method, 16)
    model(tokens(30), past_key_values=cache)
    twin = copy.deepcopy(cache)
    expected = model(tokens(9, 1), past_key_values=twin).logits
    again = model(tokens(9, 1), past_key_values=cache).logits
    assert torch.equal(again, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_goes_on_in_one_cache(kind):
    model = attach(tiny_model(kind))
    cache = make_cache(model, "full")
    first = model.generate(tokens(20), past_key_values=cache, **GREEDY)
    ids = torch.cat((first, tokens(6, 1)), dim=1)
    second = model.generate(ids, past_key_values=cache, **GREEDY)
    assert torch.equal(second, tiny_model(kind).generate(ids, **GREEDY))


@pytest.mark.parametrize("bounded", ["always", "context"])
@pytest.mark.parametrize("method", ["full", "h2o"])
def test_what_was_read_in_inference_mode_is_gone_on_with_outside_of_it(model, method, bounded):
    """As guides read a context; `generate` writes to the cache without that mode."""
    budget = None if method == "full" else 32
    cache = make_cache(model, method, budget, bounded=bounded, prompt_tokens=60)
    with torch.inference_mode():
        for ids in (tokens(60), tokens(3, 1), tokens(1, 2)):
            model(ids, past_key_values=cache)
    state = cache.snapshot()
    ids = torch.cat((tokens(60), tokens(3, 1), tokens(1, 2), tokens(5, 3)), dim=1)
    first = model.generate(ids, past_key_values=cache, **GREEDY)
    cache.restore(state)
    assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), first)
