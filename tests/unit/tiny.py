"""Tiny random models of every supported architecture."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvbudget.cache.cache import geometry_of
from kvbudget.policies.classify import classify

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3")
VOCABULARY = 97
WINDOW = 16  # of the sliding-window layers of Gemma


def tiny_model(kind: str = "llama", seed: int = 0) -> torch.nn.Module:
    """A random four-layer model in float32; Gemma's have sliding and full layers in turn."""
    extra = {}
    if kind.startswith("gemma"):
        extra = {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0 if kind == "gemma2" else None,
        }
    if kind == "mistral":
        extra = {"sliding_window": None}
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        **extra,
    )
    if kind == "phi3":
        config.hidden_size = 96  # Phi-3 derives the head dimension from it
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def calibration_of(model: torch.nn.Module) -> dict:
    """A random calibration of a tiny model."""
    geometry = geometry_of(model)
    heads = geometry.kv_heads, geometry.query_heads
    return tiny_calibration(len(geometry.layers), *heads, hidden=model.config.hidden_size)


def tiny_calibration(
    layers: int,
    kv_heads: int,
    query_heads: int,
    seed: int = 0,
    head_dim: int = 16,
    hidden: int = 48,
) -> dict:
    """A random calibration of the right shape, with convex and non-convex loss curves."""
    generator = torch.Generator().manual_seed(seed)
    shares = [0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0]
    rules = ["attention", "diversity", "recency", "window"]

    def scores() -> list:
        return torch.rand(layers, query_heads, generator=generator).tolist()

    def curves() -> list:
        steps = torch.rand(layers, kv_heads, len(shares) - 1, generator=generator)
        falling = steps.flip(-1).cumsum(-1).flip(-1) / steps.sum(-1, keepdim=True)
        return torch.cat((falling, torch.zeros(layers, kv_heads, 1)), dim=-1).tolist()

    heads = {name: scores() for name in ("retrieval", "induction", "local", "sink", "previous")}
    thresholds = {"retrieval": 0.8, "induction": 0.6}

    def scorer(features: int) -> dict:
        weights = torch.randn(layers, features, kv_heads, generator=generator)
        powers = 0.3 + torch.rand(layers, kv_heads, 1, generator=generator)
        return {
            "weights": weights.tolist(),
            "bias": [[0.5] * kv_heads] * layers,
            "spread": (torch.tensor(shares) ** powers).tolist(),
        }

    group = scorer(2 * kv_heads * (head_dim + 1))
    loss = {
        "answer": {"diversity": curves()},
        **{kind: {rule: curves() for rule in rules} for kind in ("mass", "output")},
    }
    return {
        "layers": list(range(layers)),
        "kv_heads": kv_heads,
        "query_heads": query_heads,
        "heads": heads,
        "thresholds": thresholds,
        "classes": classify(heads, kv_heads, thresholds),
        "scorer": {"group": group, "hidden": scorer(hidden), "kvzap": scorer(hidden)},
        "shares": shares,
        "loss": loss,
    }
