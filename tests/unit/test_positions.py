"""Moving keys, for every way in which models turn them, next to the models' own position_ids."""

import pytest
import torch
from tiny import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.positions import FARTHEST, Rotation, rotations_of
from kvbudget.run.check import TOLERANCE, difference

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 4.0], "factor": 4.0,
}  # fmt: skip

#: Name → architecture, options, and the dimensions that turn in each layer, of a head of 8.
MOVABLE = {
    "NoPE": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, (8, 0, 8, 0)),
    "neighbours": ("cohere", {}, (8, 8, 8, 8)),
    "some neighbours": ("glm", {"head_dim": 8}, (4, 4, 4, 4)),
    "some halves": ("phi", {}, (4, 4, 4, 4)),
    "few halves": ("stablelm", {}, (2, 2, 2, 2)),
    "no grouped queries": ("gpt_neox", {"num_key_value_heads": None}, (2, 2, 2, 2)),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, (8,) * 4),
    "yarn": ("llama", {"rope_parameters": YARN, "original": 128}, (8,) * 4),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "original": 128}, (8,) * 4),
}
INTERLEAVED = ("neighbours", "some neighbours")

#: Name → architecture, options, why keys cannot be moved.
IMMOVABLE = {
    "learned": ("gpt2", {"num_key_value_heads": None}, "GPT2LMHeadModel has no rotary position"),
    "dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
        "changes with the length",
    ),
    "longrope": ("llama", {"rope_parameters": LONG, "original": 128}, "changes with the length"),
    "normed after": ("hunyuan_v1_dense", {"head_dim": 8}, "of a kind that is not known"),
    "scaled queries": (
        "ministral3",
        {
            "head_dim": 8,
            "rope_parameters": {
                **YARN, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 128,
            },
        },
        "changes with the length",
    ),
}  # fmt: skip


def built(kind: str, options: dict) -> torch.nn.Module:
    """A tiny model with heads of 8 dimensions; `original` is the length before scaling."""
    options = dict(options)
    if original := options.pop("original", None):
        rope = {**options["rope_parameters"], "original_max_position_embeddings": original}
        options["rope_parameters"] = rope
    defaults = {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 512,
        "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    asked = {key: value for key, value in (defaults | options).items() if value is not None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **asked))
    return attach(model.eval().requires_grad_(False), unlisted=True)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 90, (1, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MOVABLE)
def test_how_layers_turn_their_keys_is_found_by_running_the_model(name):
    kind, options, turning = MOVABLE[name]
    model = built(kind, options)
    found = rotations_of(model, geometry_of(model).layers)
    assert tuple(2 * len(rotation.frequencies) for rotation in found) == turning
    assert all(rotation.interleaved == (name in INTERLEAVED) for rotation in found)
    assert difference(model) < TOLERANCE


@pytest.mark.parametrize("name", MOVABLE)
def test_a_target_numbered_apart_is_what_the_model_gives_at_those_positions(name):
    """`full` with an integer phi, next to transformers' cache with `position_ids`."""
    model = built(*MOVABLE[name][:2])
    source, phi = 30, 5
    stock, ours = (
        DynamicCache(config=model.config),
        make_cache(model, "full", phi=phi, prompt_tokens=source),
    )
    for at, piece in ((0, tokens(source)), (phi, tokens(4, 1)), (phi + 4, tokens(1, 2))):
        positions = torch.arange(at, at + piece.shape[1])[None]
        expected = model(piece, past_key_values=stock, position_ids=positions).logits
        logits = model(piece, past_key_values=ours).logits
        torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("kind", [*MOVABLE, "gemma3_text"])
def test_sinks_that_move_are_what_the_model_gives_at_those_positions(kind):
    """The first tokens depend on nothing else, so the model makes them anywhere."""
    model = built(*MOVABLE[kind][:2]) if kind in MOVABLE else attach(tiny_model(kind))
    ids, budget = tokens(40), 12
    ours = make_cache(model, "streaming-llm", budget, stride=1)
    model(ids, past_key_values=ours)
    model(tokens(1, 1), past_key_values=ours)
    moved = torch.arange(4)[None] + 40 - budget
    stock = DynamicCache(config=model.config)
    model(ids[:, :4], past_key_values=stock, position_ids=moved)
    for index in geometry_of(model).layers:
        (kept,) = ours.layers[index].kept(torch.float32)
        torch.testing.assert_close(kept.keys[:, :, :4], stock.layers[index].keys, **CLOSE)


@pytest.mark.parametrize("name", IMMOVABLE)
def test_methods_that_move_keys_are_refused_where_they_cannot(name):
    kind, options, why = IMMOVABLE[name]
    model = built(kind, options)
    for parameter, weight in model.named_parameters():
        if "norm" in parameter:  # as trained: of another weight in each dimension
            weight.uniform_(0.5, 1.5)
    for method, budget, asked in (("streaming-llm", 12, {}), ("full", None, {"phi": 5})):
        with pytest.raises(UserError, match=f"keys cannot be moved.*{why}.*positions: absolute"):
            make_cache(model, method, budget, **asked)
    make_cache(model, "streaming-llm", 12, positions="absolute")
    assert difference(model) < TOLERANCE


def test_looking_at_a_model_leaves_it_as_it_was():
    """Frequencies that scale with the length grow while far positions are tried."""
    for name in ("dynamic", "longrope"):
        model = built(*IMMOVABLE[name][:2])
        before = model(tokens(40)).logits
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        with pytest.raises(UserError):
            make_cache(model, "streaming-llm", 12)
        assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
        assert torch.equal(model(tokens(40)).logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_precise_enough(dtype):
    """Up to the longest contexts, where angles in float32 are off by themselves."""
    for name in ("NoPE", "neighbours"):
        kind, options, turning = MOVABLE[name]
        model = built(kind, {**options, "max_position_embeddings": FARTHEST}).to(dtype)
        found = rotations_of(model, range(4))
        assert tuple(2 * len(rotation.frequencies) for rotation in found) == turning


def test_a_rotation_of_no_dimension_moves_nothing():
    x = torch.randn(2, 3, 4, 8)
    assert torch.equal(Rotation(torch.empty(0)).move(x, 7), x)
    assert torch.equal(Rotation(torch.empty(0), interleaved=True).move(x, 7), x)
