"""GGUF to bfloat16 safetensors, once, so that loading takes a second instead of half a minute."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase


def convert(gguf: Path, out: Path) -> None:
    """Dequantise `gguf` and write config, bfloat16 weights and tokenizer into the directory `out`.

    The weights are those of the quantised file: expanding them brings no precision back.
    The same file and library versions give the same bytes.
    """
    directory, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=name, dtype=torch.bfloat16)

    # `save_pretrained` refuses a model that still says it is quantised by GGUF.
    model.hf_quantizer = None
    model.is_quantized = False
    for config in (model.config, model.generation_config):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config._name_or_path = ""

    model.save_pretrained(out)
    _save_tokenizer(tokenizer, out)
    # A tokenizer read from GGUF lacks its normaliser (Unicode NFC in Qwen2) until it is read
    # back as the architecture's own class; the second save writes the mended one.
    _save_tokenizer(AutoTokenizer.from_pretrained(out), out)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    # How it was loaded (from a folder, with HF_HUB_OFFLINE set or not) is no part of it, and would
    # make the same model's hash differ between machines.
    for circumstance in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(circumstance, None)
    tokenizer.save_pretrained(out)
