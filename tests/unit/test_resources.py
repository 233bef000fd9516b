"""Memory that a job asks for: by model, type and length."""

import json

import pytest

from kvbudget.study.resources import memory_mb

LLAMA_8B = {"layers": 32, "kv_heads": 8, "head_dim": 128, "checks": {"parameters": 8_030_261_248}}


def test_memory_grows_with_type_and_length(tmp_path):
    verified = tmp_path / "llama.verified.json"
    verified.write_text(json.dumps(LLAMA_8B))
    # 16 GB of weights; a token of context takes 131,072 bytes.
    assert memory_mb(verified, "bfloat16", 2000) == 24_124
    assert memory_mb(verified, "bfloat16", 20_000) == 33_561
    assert memory_mb(verified, "float32", 2000) == 45_248


def test_a_model_that_is_not_here_yet_is_no_guess(tmp_path):
    with pytest.raises(FileNotFoundError):
        memory_mb(tmp_path / "none.json", "bfloat16", 2000)
