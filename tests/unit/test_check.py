"""The self-check that users run on a model of their own."""

import subprocess
import sys

import pytest
from tiny import ARCHITECTURES, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from kvbudget import UserError, attach
from kvbudget.run.check import TOLERANCE, difference
from kvbudget.sources.download import download
from kvbudget.sources.registry import Random


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_supported_architectures_pass(kind):
    assert difference(tiny_model(kind)) < 1e-5


def test_an_architecture_that_is_not_listed_can_be_checked_and_used():
    config = AutoConfig.for_model(
        "olmo2", vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=128,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with pytest.raises(UserError, match=r"'olmo2' is not supported.*kvbudget\.check"):
        attach(model)
    assert difference(model) < 1e-5
    attach(model, unlisted=True)


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


def test_the_command(tmp_path):
    download("tiny", Random(), tmp_path / "tiny")
    command = [sys.executable, "-m", "kvbudget.run.check", str(tmp_path / "tiny")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "(llama) works" in run.stdout
