"""A tiny model with random weights, so that tests run the whole pipeline in seconds."""

from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from kvbudget.sources.registry import Random

_CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma3": Gemma3TextConfig}
# The name of the end is Qwen2's: its tokenizer class would otherwise add a token of that name.
_BOS, _EOS = "<s>", "<|endoftext|>"


def write(spec: Random, out: Path) -> None:
    """Write config, weights and tokenizer into the directory `out`; same spec, same bytes."""
    tokenizer = byte_tokenizer()
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": spec.query_heads * spec.head_dim,
        "intermediate_size": 2 * spec.query_heads * spec.head_dim,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.query_heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if spec.architecture == "gemma3":
        # The last layer sees everything, so that a model of one layer still has a cache to budget.
        options["layer_types"] = ["sliding_attention"] * (spec.layers - 1) + ["full_attention"]
        options["sliding_window"] = spec.sliding_window
        options["query_pre_attn_scalar"] = spec.head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(
            _CONFIGS[spec.architecture](**options), dtype=torch.bfloat16
        )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, BOS in front as Llama has it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([_BOS, _EOS, *letters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, vocabulary[_BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_EOS, pad_token=_EOS
    )
