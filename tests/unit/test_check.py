"""The self-check that users run on a model of their own, and what cannot be attached."""

import json

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    MambaConfig,
    PreTrainedModel,
)

from kvbudget import UserError, attach
from kvbudget.cli import main
from kvbudget.run.check import TOLERANCE, check, difference
from kvbudget.sources.download import download
from kvbudget.sources.registry import Random

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 6, "max_position_embeddings": 128, "pad_token_id": 0,
    "eos_token_id": None,
}  # fmt: skip


def built(kind: str, auto=AutoModelForCausalLM, **options) -> PreTrainedModel:
    model = auto.from_config(AutoConfig.for_model(kind, **{**SIZES, **options}))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    download("tiny", Random(), folder)
    return folder


@pytest.fixture
def saved(tiny, tmp_path):
    """Puts a model in a folder, with the tokenizer of another: only its ids matter."""

    def save(model: PreTrainedModel):
        model.save_pretrained(tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((tiny / name).read_bytes())
        return tmp_path

    return save


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_supported_architectures_pass(kind):
    assert difference(tiny_model(kind)) < 1e-5


def test_an_architecture_that_is_not_listed_can_be_checked_and_used():
    model = built("olmo2", num_key_value_heads=3)
    with pytest.raises(UserError, match=r"'olmo2' is not supported.*kvbudget check"):
        attach(model)
    assert difference(model) < 1e-5
    attach(model, unlisted=True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama4_text", {"attention_chunk_size": 16, "num_key_value_heads": 3, "head_dim": 8}),
        ("cohere2", {"sliding_window": 16, "num_key_value_heads": 3}),
        ("phi", {"num_key_value_heads": 3}),
        ("opt", {}),
    ],
)
def test_chunks_windows_and_heads_of_other_kinds(kind, options):
    model = built(kind, num_hidden_layers=4, **options)
    assert difference(model) < 1e-5


def test_a_model_that_attends_otherwise_fails():
    """A wrong scale is what an attention that we do not know would look like."""
    model = tiny_model("llama")
    stock = model.forward

    def forward(*args, **kwargs):
        for layer in model.model.layers:
            attached = model.config._attn_implementation == "kvbudget"
            layer.self_attn.scaling = 0.1 if attached else 0.25
        return stock(*args, **kwargs)

    model.forward = forward
    assert difference(model) > TOLERANCE


def test_the_command(tiny, capsys):
    main(["check", str(tiny)])
    said = capsys.readouterr().out
    assert "(llama) works: logits differ by at most" in said
    assert said.endswith("every method works\n")


def test_methods_that_move_keys_are_named_where_they_do_not_work(saved):
    said = check(saved(built("gpt2")))
    assert "(gpt2) works: logits differ by at most" in said
    assert "no rotary position embedding; use positions: absolute (streaming-llm)" in said


# What is no model, or none for our caches: one sentence each.


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("bert", {}, "other logits in pieces than at once, as encoders do"),
        ("bloom", {}, "does not let the attention of 'bloom' be set"),
        ("qwen3_next", {}, "layers of the kind 'linear_attention', for which there is no budget"),
        ("falcon_h1", {}, "layers of the kind 'hybrid', for which there is no budget"),
    ],
)
def test_models_that_do_not_work(kind, options, words, saved):
    with pytest.raises(UserError, match=words) as caught:
        check(saved(built(kind, **options)))
    assert "\n" not in str(caught.value)
    assert f"({kind}) does not work with our caches" in str(caught.value)


def test_a_model_without_attention(saved):
    sizes = {key: value for key, value in SIZES.items() if "heads" not in key}
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**sizes))
    with pytest.raises(UserError, match="'mamba' is not supported"):
        attach(mamba)
    with pytest.raises(UserError, match="'mamba' has no attention"):
        attach(mamba, unlisted=True)
    with pytest.raises(UserError, match="'mamba' has no attention"):
        check(saved(mamba))


def test_an_encoder_and_a_decoder(saved):
    model = built("t5", AutoModelForSeq2SeqLM, d_model=48, d_kv=8, d_ff=64, num_layers=2)
    with pytest.raises(UserError, match="'t5' has an encoder"):
        attach(model, unlisted=True)
    with pytest.raises(UserError, match=r"cannot be loaded: ValueError: .*T5Config") as caught:
        check(saved(model))
    assert len(str(caught.value)) < 400


def test_attach_takes_models_of_transformers():
    with pytest.raises(UserError, match="takes a model of transformers, not Linear"):
        attach(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="takes a model of transformers, not str"):
        attach("models/tiny")


def test_places_that_hold_no_model(tiny, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for place in (tmp_path / "absent", tmp_path, file):
        with pytest.raises(UserError, match=r"is no folder of a model: it has no config\.json"):
            check(place)
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path / "absent")])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("config", ["{", "[]", "{}", json.dumps({"model_type": "never-heard-of"})])
def test_a_folder_that_transformers_cannot_load(config, tiny, tmp_path):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        check(tmp_path)
    assert "\n" not in str(caught.value)
