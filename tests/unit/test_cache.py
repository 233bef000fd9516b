"""The invariants of the cache, on random tiny models of every supported architecture."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Oracle
from tiny import ARCHITECTURES, VOCABULARY, WINDOW, calibration_of, tiny_model
from transformers import DynamicCache

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.budget import Geometry
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.cache.positions import Rotation
from kvbudget.policies.make import make_policy

BUDGET = 16
METHODS = {
    "h2o": {"method": "h2o"},
    "h2o-stride": {"method": "h2o", "stride": 3},
    "streaming": {"method": "streaming-llm"},
    "streaming-stride": {"method": "streaming-llm", "stride": 4},
    "streaming-absolute": {"method": "streaming-llm", "positions": "absolute"},
    "head-aware": {"method": "head-aware"},
    "head-aware-pooled": {
        "method": "head-aware",
        "allocation": "curves",
        "loss": "output",
        "rule": "window",
        "safeguard": 0.4,
        "recent": 4,
        "stride": 2,
    },
    "ha-hidden": {"method": "head-aware", "features": "hidden", "stride": 2},
    "kvzap": {"method": "kvzap", "safeguard": 0.5},
    "tova": {"method": "tova"},
    "expected-attention": {"method": "expected-attention", "stride": 2},
    "pyramidkv": {"method": "pyramidkv"},
}

RELATIVE = ("streaming", "streaming-stride")  # positions are those inside the cache


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


def cache_for(model, method: str, budget=BUDGET, **options):
    options = {**METHODS[method], **options}
    if options["method"] in ("head-aware", "kvzap"):
        options["calibration"] = calibration_of(model)
    return make_cache(model, budget=budget, **options)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return attach(tiny_model(request.param))


@pytest.fixture(scope="module")
def llama():
    return attach(tiny_model("llama"))


def test_full_cache_gives_the_stock_logits(model):
    """Keep-all equals transformers' own attention and cache, prefill and decode."""
    stock = tiny_model(model.config.model_type)
    if model.config.model_type == "gemma2":
        stock.set_attn_implementation("eager")  # SDPA leaves out the soft cap
    ids = tokens(50)
    expected = stock(ids).logits
    cache = make_cache(model, "full")
    ours = [model(ids[:, :40], past_key_values=cache).logits]
    ours += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(40, 50)]
    torch.testing.assert_close(torch.cat(ours, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_an_attached_model_still_works_with_other_caches(model):
    """Transformers' own caches, in pieces and padded, give the stock logits."""
    kind = model.config.model_type
    stock = tiny_model(kind)
    if kind == "gemma2":
        stock.set_attn_implementation("eager")
    ids, mask = tokens(50), torch.ones(1, 50, dtype=torch.long)
    for padding in (0, 5):
        mask[:, :padding] = 0
        theirs, ours = (DynamicCache(config=model.config) for _ in range(2))
        for start, stop in [(0, 40), (40, 47), (47, 48), (48, 50)]:
            given = {"attention_mask": mask[:, :stop]}
            expected = stock(ids[:, start:stop], past_key_values=theirs, **given).logits
            logits = model(ids[:, start:stop], past_key_values=ours, **given).logits
            real = slice(max(0, padding - start), None)
            torch.testing.assert_close(logits[:, real], expected[:, real], atol=1e-5, rtol=1e-5)
    fixed = model.generate(
        tokens(30), max_new_tokens=5, do_sample=False, cache_implementation="static"
    )
    free = stock.generate(tokens(30), max_new_tokens=5, do_sample=False)
    assert torch.equal(fixed, free)


def test_without_a_calibration_the_prompt_alone_spends_the_budget(llama):
    cache = make_cache(llama, "head-aware", 16)
    llama(tokens(60), past_key_values=cache)
    counts = [[len(head) for head in layer.kept_positions()] for layer in cache.budgeted]
    assert all(sum(layer) == 16 * 3 for layer in counts)
    assert any(len(set(layer)) > 1 for layer in counts)


def test_a_snapshot_outlives_a_reset(model):
    cache = cache_for(model, "head-aware-pooled")
    model(tokens(60), past_key_values=cache)
    state = cache.snapshot()
    expected = model(tokens(5, 1), past_key_values=cache).logits
    cache.reset()
    model(tokens(30, 2), past_key_values=cache)
    cache.restore(state)
    assert torch.equal(model(tokens(5, 1), past_key_values=cache).logits, expected)


def test_generate_gives_the_stock_tokens(model):
    stock = tiny_model(model.config.model_type)
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = stock.generate(tokens(30), **options)
    cache = make_cache(model, "full")
    assert torch.equal(model.generate(tokens(30), past_key_values=cache, **options), expected)


@pytest.mark.parametrize("method", METHODS)
def test_keep_all_is_bit_equal_to_the_full_cache(model, method):
    """A budget over the sequence evicts nothing and changes no bit."""
    ids = tokens(40)
    full, ours = make_cache(model, "full"), cache_for(model, method, budget=64)
    for start, stop in [(0, 30), (30, 36), (36, 37), (37, 38), (38, 40)]:
        piece = ids[:, start:stop]
        expected = model(piece, past_key_values=full).logits
        assert torch.equal(model(piece, past_key_values=ours).logits, expected)


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_masked_oracle(model, method):
    """Prefill, a question of several tokens, and decode, against a full cache with -inf."""
    if method in RELATIVE and model.config.model_type.startswith("gemma3"):
        frequencies = model.base_model.rotary_emb.full_attention_inv_freq
        model.base_model.rotary_emb.inv_freq = frequencies  # where the oracle looks for them
    ours, oracle = cache_for(model, method), Oracle(model, relative=method in RELATIVE)
    ids = tokens(70)
    for start, stop in [(0, 40), (40, 47), *((i, i + 1) for i in range(47, 70))]:
        piece = ids[:, start:stop]
        expected = oracle.forward(piece, ours)
        torch.testing.assert_close(
            model(piece, past_key_values=ours).logits, expected, atol=1e-5, rtol=1e-5
        )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(sorted(METHODS)),
    steps=st.lists(
        st.one_of(
            st.integers(1, 25),
            st.just("snapshot"),
            st.tuples(st.just("restore"), st.integers(0, 5)),
        ),
        min_size=2,
        max_size=16,
    ),
)
def test_any_sequence_of_operations_equals_the_masked_oracle(llama, method, steps):
    ours, oracle = cache_for(llama, method), Oracle(llama, relative=method in RELATIVE)
    states = []
    for step_seed, step in enumerate((20, *steps)):
        if step == "snapshot":
            states.append((ours.snapshot(), oracle.snapshot()))
        elif isinstance(step, tuple):
            if states:
                mine, theirs = states[step[1] % len(states)]
                ours.restore(mine)
                oracle.restore(theirs)
        else:
            ids = tokens(step, seed=step_seed)
            expected = oracle.forward(ids, ours)
            torch.testing.assert_close(
                llama(ids, past_key_values=ours).logits, expected, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("method", METHODS)
def test_chunked_prefill_is_the_same_inside_and_outside_of_a_forward_pass(model, method):
    """`prefill_chunk` evicts as if the prompt came in pieces, with bounded peak either way."""
    ids = tokens(60)
    inside = cache_for(model, method, prefill_chunk=13, prompt_tokens=60)
    logits = model(ids, past_key_values=inside).logits
    outside = cache_for(model, method, prompt_tokens=60)
    pieces = [model(piece, past_key_values=outside).logits for piece in ids.split(13, dim=1)]
    torch.testing.assert_close(logits, torch.cat(pieces, dim=1), atol=1e-5, rtol=1e-5)
    for layer in geometry_of(model).layers:
        for mine, theirs in zip(
            inside.kept_positions(layer), outside.kept_positions(layer), strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_chunked_prefill_without_eviction_equals_one_shot_prefill(model, method):
    ids = tokens(50)
    expected = model(ids, past_key_values=make_cache(model, "full")).logits
    chunked = cache_for(model, method, budget=50, prefill_chunk=13)
    ours = model(ids, past_key_values=chunked).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_is_kept_at_every_step(llama, method):
    """The mean of kept tokens is the budget, the newest is among them, stride bounds the excess."""
    cache = cache_for(llama, method)
    stride = METHODS[method].get("stride", 1)
    ids, seen = tokens(80), 0
    for stop in (40, 46, *range(47, 80)):
        llama(ids[:, seen:stop], past_key_values=cache)
        seen = stop
        kept = [cache.kept_positions(layer) for layer in range(4)]
        counts = [len(head) for layer in kept for head in layer]
        assert BUDGET * len(counts) <= sum(counts) <= (BUDGET + stride - 1) * len(counts)
        assert all(int(head[-1]) == seen - 1 for layer in kept for head in layer)
        assert all(len(head.unique()) == len(head) for layer in kept for head in layer)


def test_the_cache_frees_what_it_evicts(llama):
    """Storage shrinks with the budget; it is not masked."""
    full, ours = make_cache(llama, "full"), cache_for(llama, "head-aware", budget=32)
    llama(tokens(400), past_key_values=full)
    llama(tokens(400), past_key_values=ours)
    itemsize = 4
    assert ours.planned_bytes(itemsize) == full.planned_bytes(itemsize, tokens=400) * 32 // 400
    assert ours.allocated_bytes() < 1.1 * ours.planned_bytes(itemsize)
    assert full.allocated_bytes() >= full.planned_bytes(itemsize, tokens=400)


@pytest.mark.parametrize("method", ["h2o", "streaming-llm", "head-aware"])
def test_the_storage_is_the_plan_and_little_more(method):
    """Within 2% at a budget of 512 and heads of 64 in float32, positions, sums and stride
    included, after the prompt and while decoding."""
    geometry = Geometry((0,), kv_heads=2, query_heads=4, head_dim=64)
    plan = Plan(make_policy(method), geometry, 512)
    frequencies = 10000 ** -(torch.arange(32) / 32)
    layer = BudgetedLayer(0, 2, LayerOptions(plan, rotations=(Rotation(frequencies),)))
    for new in (700, *[1] * 10):
        layer.update(torch.randn(1, 2, new, 64), torch.randn(1, 2, new, 64))
        layer.attend(torch.randn(1, 4, new, 64), 0.125, None, None)
        assert layer.allocated_bytes() <= 1.02 * geometry.planned_bytes(512, itemsize=4)


def test_the_stride_follows_the_budget(llama):
    cache = make_cache(llama, "h2o", 768)
    llama(tokens(900), past_key_values=cache)
    counts = []
    for seed in range(6):
        llama(tokens(1, seed), past_key_values=cache)
        counts.append(len(cache.kept_positions(0)[0]))
    assert counts == [769, 770, 768] * 2


def test_a_key_planted_for_one_head_survives_in_that_head_alone(llama):
    """Grouped-query mapping: query heads 2 and 3 keep tokens of the KV head that they read."""
    cache = make_cache(llama, "h2o", 16)
    layer = cache.budgeted[2]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 60, 16, generator=generator) * 0.01
    key = torch.randn(1, 3, 60, 16, generator=generator) * 0.01
    query[0, 2:4] += 5.0
    key[0, 1, 25] += 5.0
    layer.update(key, torch.randn(1, 3, 60, 16, generator=generator))
    layer.attend(query, 0.25, None, None)
    kept = [25 in head.tolist() for head in layer.kept_positions()]
    assert kept == [False, True, False]


def test_nothing_of_one_sample_is_left_in_the_next(model):
    cache = cache_for(model, "head-aware-pooled")
    model(tokens(60, seed=1), past_key_values=cache)
    cache.reset()
    reused = model(tokens(40), past_key_values=cache).logits
    fresh = model(tokens(40), past_key_values=cache_for(model, "head-aware-pooled")).logits
    assert torch.equal(reused, fresh)
    assert cache.get_seq_length() == 40


def test_what_is_kept_does_not_depend_on_a_later_question(llama):
    cache = cache_for(llama, "head-aware")
    llama(tokens(50), past_key_values=cache)
    before = [cache.kept_positions(layer) for layer in range(4)]
    state = cache.snapshot()
    for seed in (1, 2):
        llama(tokens(9, seed=seed), past_key_values=cache)
        cache.restore(state)
        after = [cache.kept_positions(layer) for layer in range(4)]
        assert all(
            torch.equal(mine, theirs)
            for one, two in zip(before, after, strict=True)
            for mine, theirs in zip(one, two, strict=True)
        )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("h2o", {}),
        ("h2o-stride", {}),
        ("streaming-absolute", {}),
        ("head-aware", {}),
        ("head-aware-pooled", {"safeguard": 1.0}),
        ("tova", {}),
        ("expected-attention", {"prompt_tokens": None}),  # which ends where each prompt does
        ("pyramidkv", {}),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_a_left_padded_batch_equals_batches_of_one(kind, method, options):
    model = attach(tiny_model(kind))
    check_padded_batch(model, lambda: cache_for(model, method, **{"prompt_tokens": 40, **options}))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_a_left_padded_batch_in_the_full_cache(kind):
    model = attach(tiny_model(kind))
    check_padded_batch(model, lambda: make_cache(model, "full"))


def check_padded_batch(model, build):
    short, long = tokens(33, seed=1), tokens(40, seed=2)
    ids = torch.cat((torch.cat((torch.zeros(1, 7, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=mask, past_key_values=build(), **options)
    for row, alone in enumerate((short, long)):
        expected = model.generate(alone, past_key_values=build(), **options)
        assert torch.equal(together[row, -10:], expected[0, -10:])


def test_sliding_layers_keep_the_shapes_of_the_library():
    model = attach(tiny_model("gemma3_text"))
    cache = cache_for(model, "head-aware")
    model(tokens(60), past_key_values=cache)
    assert [layer.keys.shape[2] for layer in cache.layers[::2]] == [WINDOW - 1] * 2
    assert cache.sliding_bytes() == 2 * 2 * 3 * (WINDOW - 1) * 16 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_stays_finite_and_is_deterministic(method, dtype):
    runs = []
    for _ in range(2):
        model = attach(tiny_model("llama")).to(dtype)
        cache = cache_for(model, method)
        logits = [model(tokens(50), past_key_values=cache).logits]
        logits += [model(tokens(1, seed=i), past_key_values=cache).logits for i in range(20)]
        runs.append(torch.cat(logits, dim=1))
    assert torch.isfinite(runs[0]).all()
    assert torch.equal(*runs)


def test_gpe_auto_equals_ordinary_positions_and_an_integer_phi_moves_the_target(llama):
    """phi = S is the stock model; for any phi, target positions are phi, phi + 1, …"""
    ids = tokens(30)
    stock = tiny_model("llama")
    position_ids = torch.cat((torch.arange(24), 5 + torch.arange(6)))[None]
    expected = stock(ids, position_ids=position_ids).logits
    for phi, want in (("auto", stock(ids).logits), (5, expected)):
        cache = make_cache(llama, "full", phi=phi, prompt_tokens=24)
        ours = [llama(ids[:, :24], past_key_values=cache).logits]
        ours += [llama(ids[:, 24:28], past_key_values=cache).logits]
        ours += [llama(ids[:, i : i + 1], past_key_values=cache).logits for i in (28, 29)]
        torch.testing.assert_close(torch.cat(ours, dim=1), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "h20", "budget": 64}, "unknown method 'h20', did you mean 'h2o'"),
        ({"method": "h2o"}, "needs a budget"),
        ({"method": "full", "budget": 64}, "has no budget"),
        ({"method": "h2o", "budget": 64, "lamda": 1}, "unknown option 'lamda'"),
        ({"method": "h2o", "budget": 64, "stride": 0}, "stride must be 1 or more"),
    ],
)
def test_bad_arguments_are_named(llama, arguments, message):
    with pytest.raises(UserError, match=message):
        make_cache(llama, **arguments)


@pytest.mark.parametrize(("budget", "message"), [(4, "fewer than the 8"), ("130%", "above 0%")])
def test_bad_budgets_are_named(llama, budget, message):
    cache = make_cache(llama, "h2o", budget)
    with pytest.raises(UserError, match=message):
        llama(tokens(40), past_key_values=cache)


def test_an_unknown_architecture_and_a_model_that_is_not_attached_are_refused():
    with pytest.raises(UserError, match="call attach"):
        make_cache(tiny_model("llama"), "full")
    model = tiny_model("llama")
    model.config.model_type = "bloom"
    with pytest.raises(UserError, match="architecture 'bloom' is not supported"):
        attach(model)


def test_moving_keys_in_a_padded_batch_is_refused(llama):
    cache = make_cache(llama, "streaming-llm", 16)
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(UserError, match="positions: absolute"):
        llama(tokens(20), attention_mask=mask, past_key_values=cache)
