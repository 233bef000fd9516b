"""Masks that transformers passes, next to its eager attention, with our caches, its own and none.

Where eager attention wants a number that is added, our masks may say True and False as SDPA's do.
"""

import pytest
import torch
from oracle import Oracle
from tiny import tiny_model
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.attention import BLOCK
from kvbudget.cache.masks import mask_for_attention
from kvbudget.cache.streaming import StreamingCache

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPT, BRANCHES = 20, (3, 4)  # tokens
NONE, STOCK, OURS = "none", "stock", "ours"


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 90, (1, count), generator=torch.Generator().manual_seed(seed))


def tree() -> tuple[torch.Tensor, torch.Tensor]:
    """Two continuations of one prompt, side by side: who sees whom `(all, all)`, and positions."""
    first = PROMPT + BRANCHES[0]
    seen = torch.ones(first + BRANCHES[1], first + BRANCHES[1], dtype=torch.bool).tril()
    seen[first:, PROMPT:first] = False
    positions = [torch.arange(PROMPT + BRANCHES[0]), PROMPT + torch.arange(BRANCHES[1])]
    return seen, torch.cat(positions)[None]


def added(seen: torch.Tensor) -> torch.Tensor:
    """A mask as eager attention takes it, `(1, 1, queries, tokens)`."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


def eager(model, *args, cache=None, **inputs) -> torch.Tensor:
    """Logits by transformers' eager attention; the model is as before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits = model(*args, past_key_values=cache, **inputs).logits
    model.set_attn_implementation(before)
    return logits


def cache_of(model, which: str):
    if which == OURS:
        return make_cache(model, "full")
    return DynamicCache(config=model.config) if which == STOCK else None


@pytest.mark.parametrize("which", [NONE, STOCK, OURS])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("boolean", [True, False])
def test_a_tree_of_continuations_in_one_pass(kind, which, boolean):
    model = attach(tiny_model(kind))
    if kind == "gemma2":  # soft-capped; only full layers, since a tree has one mask for all
        model.config.layer_types = ["full_attention"] * 4
        for layer in model.model.layers:
            layer.attention_type = "full_attention"
    seen, positions = tree()
    ids = tokens(positions.shape[1])
    expected = eager(model, ids, attention_mask=added(seen), position_ids=positions)
    mask = seen[None, None] if boolean else added(seen)
    inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": which != NONE}
    logits = model(ids, past_key_values=cache_of(model, which), **inputs).logits
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("method", ["full", "h2o", "snapkv", "streaming-llm"])
def test_a_tree_after_eviction_equals_the_masked_oracle(method):
    """Tokens of a tree are attended to, scored and evicted as any others."""
    model = attach(tiny_model("llama"))
    options = {"positions": "absolute"} if method == "streaming-llm" else {}
    ours = make_cache(model, method, None if method == "full" else 12, **options)
    oracle = Oracle(model)
    seen, positions = tree()
    ids = tokens(positions.shape[1])
    for piece in (slice(PROMPT), slice(PROMPT, ids.shape[1])):
        own, at = seen[piece, : piece.stop], positions[:, piece]
        expected = oracle.forward(ids[:, piece], ours, own, position_ids=at)
        inputs = {"attention_mask": own[None, None], "position_ids": at}
        logits = model(ids[:, piece], past_key_values=ours, **inputs).logits
        torch.testing.assert_close(logits, expected, **CLOSE)
    for seed in (1, 2):  # and decoding goes on
        expected = oracle.forward(tokens(1, seed), ours)
        logits = model(tokens(1, seed), past_key_values=ours).logits
        torch.testing.assert_close(logits, expected, **CLOSE)


def test_questions_side_by_side_are_answered_as_one_by_one():
    """One compressed context, two questions: in a tree, or the one, restored, then the other."""
    model = attach(tiny_model("llama"))
    cache = make_cache(model, "h2o", 12)
    seen, positions = tree()
    ids = tokens(positions.shape[1])
    model(ids[:, :PROMPT], past_key_values=cache)
    context = cache.snapshot()
    inputs = {"attention_mask": seen[None, None, PROMPT:], "position_ids": positions[:, PROMPT:]}
    together = model(ids[:, PROMPT:], past_key_values=cache, **inputs).logits
    alone = []
    for question in ids[:, PROMPT:].split(BRANCHES, dim=1):
        cache.restore(context)
        alone.append(model(question, past_key_values=cache).logits)
    torch.testing.assert_close(together, torch.cat(alone, dim=1), **CLOSE)


def test_scores_follow_the_mask():
    """A token that the mask hides from all later ones is no heavy hitter."""
    model = attach(tiny_model("llama"))
    cache = make_cache(model, "h2o", 12)
    hidden = slice(4, 9)
    seen = torch.ones(60, 60, dtype=torch.bool).tril()
    seen[:, hidden] = torch.eye(60, dtype=torch.bool)[:, hidden]
    model(tokens(60), past_key_values=cache, attention_mask=seen[None, None])
    by_layer = [cache.kept_positions(layer) for layer in range(4)]
    kept = torch.stack([own for layer in by_layer for own in layer])
    free = make_cache(model, "h2o", 12)
    model(tokens(60), past_key_values=free)
    usual = torch.stack([own for layer in range(4) for own in free.kept_positions(layer)])

    def held(positions: torch.Tensor) -> int:
        return int(((positions >= hidden.start) & (positions < hidden.stop)).sum())

    assert held(kept) < held(usual)


@pytest.mark.parametrize(
    ("method", "options"),
    [("h2o", {}), ("h2o", {"prefill_chunk": 16}), ("streaming-llm", {"positions": "cache"})],
)
def test_a_causal_mask_in_four_dimensions_changes_nothing(method, options):
    """Nor does it stand in the way of what other masks do."""
    model = attach(tiny_model("llama"))
    expected, ours = (make_cache(model, method, 40, **options) for _ in "ab")
    seen = torch.ones(61, 61, dtype=torch.bool).tril()[None, None]
    for piece in (slice(60), slice(60, 61)):
        ids = tokens(61)[:, piece]
        mask = seen[:, :, piece, : piece.stop]
        logits = model(ids, past_key_values=ours, attention_mask=mask).logits
        assert torch.equal(logits, model(ids, past_key_values=expected).logits)
    for layer in range(4):
        pairs = zip(ours.kept_positions(layer), expected.kept_positions(layer), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_a_mask_over_several_blocks_of_queries():
    """A window, as a caller's mask."""
    model = attach(tiny_model("llama"))
    count = 2 * BLOCK + 3
    seen = torch.ones(count, count, dtype=torch.bool).tril().triu(-40)
    expected = eager(model, tokens(count), attention_mask=added(seen))
    cache = make_cache(model, "full")
    logits = model(tokens(count), past_key_values=cache, attention_mask=seen[None, None]).logits
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("which", [NONE, STOCK, OURS])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("where", ["call", "config"])
def test_attention_both_ways(kind, which, where):
    model = attach(tiny_model(kind))
    asked = {"is_causal": False} if where == "call" else {}
    if where == "config":
        model.config.is_causal = False
    reference, cache = cache_of(model, which if which == NONE else STOCK), cache_of(model, which)
    for ids in tokens(24).split((20, 3, 1), dim=1) if cache else (tokens(24),):
        expected = eager(model, ids, cache=reference, **asked)
        logits = model(ids, past_key_values=cache, **asked).logits
        torch.testing.assert_close(logits, expected, **CLOSE)


def test_what_a_module_says_of_itself_is_no_mask():
    """Eager attention goes by the mask alone, and SDPA by the module only where there is none."""
    model = attach(tiny_model("llama"))
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    expected = eager(model, tokens(20))
    torch.testing.assert_close(model(tokens(20)).logits, expected, **CLOSE)
    logits = model(tokens(20), past_key_values=make_cache(model, "full")).logits
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_dropout(kind):
    """All attention dropped leaves nothing to chance; our caches refuse before they hold any."""
    model = attach(tiny_model(kind)).train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 1.0
    for cache in (None, "stock"):
        caches = [DynamicCache(config=model.config) if cache else None for _ in "ab"]
        expected = eager(model, tokens(20), cache=caches[0])
        logits = model(tokens(20), past_key_values=caches[1]).logits
        torch.testing.assert_close(logits, expected, **CLOSE)
    cache = make_cache(model, "full")
    with pytest.raises(UserError, match=r"drops out attention.*model\.eval\(\)"):
        model(tokens(20), past_key_values=cache)
    assert not any(layer.seen for layer in cache.budgeted)


def test_packed_sequences():
    """Two sequences in one row, told apart by their positions."""
    model = attach(tiny_model("llama"))
    positions = torch.cat((torch.arange(12), torch.arange(9)))[None]
    inputs = {"position_ids": positions, "use_cache": False}
    expected = eager(model, tokens(21), **inputs)
    logits = model(tokens(21), **inputs).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    torch.testing.assert_close(logits[:, 12:], model(tokens(21)[:, 12:]).logits, **CLOSE)


# Models that read images too.

TEXT = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "pad_token_id": 0,
    "max_position_embeddings": 512, "initializer_range": 0.15, "eos_token_id": None,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "initializer_range": 0.15,
}  # fmt: skip
IMAGE = 96  # the token that stands for a part of an image


def llava() -> PreTrainedModel:
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=IMAGE,
    )
    return LlavaForConditionalGeneration(config)


def gemma3() -> PreTrainedModel:
    text = Gemma3TextConfig(
        **TEXT,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=16,
    )
    vision = SiglipVisionConfig(**VISION)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=text,
            vision_config=vision,
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=95,
            eoi_token_index=94,
        )
    )


def paligemma() -> PreTrainedModel:
    vision = SiglipVisionConfig(**VISION, vision_use_head=False)
    config = PaliGemmaConfig(
        text_config=GemmaConfig(**TEXT),
        vision_config=vision,
        projection_dim=48,
        hidden_size=48,
        image_token_index=IMAGE,
    )
    return PaliGemmaForConditionalGeneration(config)


#: Which tokens see each other both ways: none, those of an image, those of the prompt.
TYPES = {llava: None, gemma3: lambda ids: (ids == IMAGE).long(), paligemma: torch.zeros_like}


def picture(make) -> tuple[PreTrainedModel, torch.Tensor, dict]:
    """A model, a prompt of 30 tokens with an image in it, and its other inputs."""
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    ids = tokens(30)
    ids[:, 5:9] = IMAGE
    inputs = {"pixel_values": torch.randn(1, 3, 28, 28)}
    if TYPES[make] is not None:
        inputs["token_type_ids"] = TYPES[make](ids)
    return model, ids, inputs


@pytest.mark.parametrize("which", [NONE, STOCK, OURS])
@pytest.mark.parametrize("make", TYPES)
def test_an_image_in_the_prompt(make, which):
    model, ids, inputs = picture(make)
    reference = cache_of(model, which if which == NONE else STOCK)
    model.set_attn_implementation("eager")
    expected = [model(ids, past_key_values=reference, **inputs).logits]
    if reference is not None:
        expected += [model(tokens(n, n), past_key_values=reference).logits for n in (3, 1)]
    model.set_attn_implementation("sdpa")
    attach(model, unlisted=make is paligemma)
    cache = cache_of(model, which)
    logits = [model(ids, past_key_values=cache, **inputs).logits]
    if cache is not None:
        logits += [model(tokens(n, n), past_key_values=cache).logits for n in (3, 1)]
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("make", TYPES)
def test_only_the_part_that_reads_text_is_attached(make):
    model = attach(picture(make)[0], unlisted=make is paligemma)
    parts = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    set_to = {config.model_type: config._attn_implementation for config in parts.values()}
    text = model.config.get_text_config(decoder=True).model_type
    assert {kind for kind, name in set_to.items() if name == "kvbudget"} == {text}
    assert len(set_to) == 3


@pytest.mark.parametrize("make", TYPES)
def test_generation_from_an_image(make):
    model, ids, inputs = picture(make)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, **inputs)
    attach(model, unlisted=make is paligemma)
    cache = make_cache(model, "full")
    found = model.generate(ids, max_new_tokens=6, do_sample=False, past_key_values=cache, **inputs)
    assert torch.equal(found, expected)
    bounded = make_cache(model, "h2o", 12)
    model.generate(ids, max_new_tokens=6, do_sample=False, past_key_values=bounded, **inputs)
    assert all(len(own) == 12 for own in bounded.kept_positions(1))


def test_keys_move_in_the_part_that_reads_text():
    model, ids, inputs = picture(llava)
    attach(model)
    cache = make_cache(model, "streaming-llm", 12)
    model(ids, past_key_values=cache, **inputs)
    moved = torch.arange(4)[None] + 30 - 12
    stock = DynamicCache(config=model.config)
    model(tokens(1), past_key_values=cache)
    model(ids[:, :4], past_key_values=stock, position_ids=moved)
    (kept,) = cache.layers[3].kept(torch.float32)
    torch.testing.assert_close(kept.keys[:, :, :4], stock.layers[3].keys, **CLOSE)


# What cannot be honoured is refused, and the cache stays as it was.


def test_masks_that_our_caches_cannot_honour():
    model = attach(tiny_model("llama"))
    seen, positions = tree()
    ids, mask = tokens(positions.shape[1]), added(seen)
    biased = mask.clone()
    biased[..., 5, 3] = 0.5
    padded = mask.clone()
    padded[..., 2] = torch.finfo(torch.float32).min
    block = create_block_mask(lambda b, h, q, kv: q >= kv, 1, None, 128, 128, device="cpu")
    for bad, words in (
        (biased, "hides tokens or shows them"),
        (mask.long(), "hides tokens or shows them"),
        (
            mask.expand(-1, 6, -1, -1),
            r"\(batch, 1, 27, 27\): all tokens seen.*the same for all heads",
        ),
        (mask[..., :-1], r"\(batch, 1, 27, 27\).*\(1, 1, 27, 26\)"),
        (padded, "hides a new token from all.*without padding"),
        (block, "BlockMask is a mask for flex attention"),
    ):
        cache = make_cache(model, "full")
        with pytest.raises(UserError, match=words):
            model(ids, past_key_values=cache, attention_mask=bad)
        assert cache.get_seq_length() == 0


def test_uses_that_our_caches_cannot_honour_with_a_mask():
    model = attach(tiny_model("llama"))
    seen, positions = tree()
    ids, mask = tokens(positions.shape[1]), seen[None, None]
    for cache, words in (
        (make_cache(model, "streaming-llm", 12), "moving keys.*use positions: absolute"),
        (make_cache(model, "full", phi=3), "moving keys.*phi: auto"),
        (make_cache(model, "h2o", 12, prefill_chunk=8), "prefill_chunk.*drop it"),
        (StreamingCache(make_cache(model, "h2o", 12, prompt_tokens=27)), "without a mask"),
    ):
        with pytest.raises(UserError, match=words):
            model(ids, past_key_values=cache, attention_mask=mask)
        assert cache.get_seq_length() == 0


def test_a_tree_does_not_follow_a_padded_prompt():
    model = attach(tiny_model("llama"))
    cache = make_cache(model, "full")
    padding = torch.ones(2, 10, dtype=torch.long)
    padding[0, :3] = 0
    model(tokens(20).view(2, 10), past_key_values=cache, attention_mask=padding)
    mask = torch.ones(2, 1, 2, 12, dtype=torch.bool).tril(10)
    with pytest.raises(UserError, match="cannot follow a padded prompt"):
        model(tokens(4).view(2, 2), past_key_values=cache, attention_mask=mask)


def test_attention_of_another_kind_is_refused():
    config = GptOssConfig(**TEXT, num_local_experts=2, num_experts_per_tok=1, sliding_window=16)
    model = attach(GptOssForCausalLM(config).eval().requires_grad_(False), unlisted=True)
    with pytest.raises(UserError, match=r"GptOssAttention attends with 's_aux'"):
        model(tokens(8))
    llama = attach(tiny_model("llama"))
    with pytest.raises(UserError, match="attends with 'head_mask'"):
        llama(tokens(8), head_mask=torch.ones(4, 6))


# A mask of `(queries, tokens)` is made only where it says something.


def test_plain_causality_needs_no_mask():
    assert mask_for_attention(2, 5, 9, q_offset=4) is None
    padding = torch.ones(2, 9, dtype=torch.long)
    assert mask_for_attention(2, 5, 9, q_offset=4, attention_mask=padding) is None
    padding[0, 0] = 0
    assert mask_for_attention(2, 5, 9, q_offset=4, attention_mask=padding).shape == (2, 9)


def test_other_masks_are_those_of_transformers():
    everything = mask_for_attention(
        2, 5, 5, mask_function=lambda b, h, q, kv: q >= 0, allow_is_bidirectional_skip=True
    )
    assert everything.shape == (1, 1, 1, 1)
    assert everything.all()
    forced = mask_for_attention(2, 5, 9, q_offset=4, allow_is_causal_skip=False)
    assert torch.equal(forced[0, 0], torch.ones(5, 9, dtype=torch.bool).tril(4))
    short = torch.ones(
        1, 5, dtype=torch.bool
    )  # of the new tokens alone: to transformers, the others come later
    late = mask_for_attention(1, 5, 9, q_offset=4, attention_mask=short)
    assert torch.equal(late[0, 0].any(dim=0), torch.arange(9) < 5)
