"""Decode steps, prefill and memory on a GPU, of random models in the shapes of real ones.

Random weights cost what trained ones do, so nothing has to be downloaded.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvbudget import attach
from kvbudget.run import bench

SHAPES = {
    "qwen2.5-0.5b": ("qwen2", {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    }),
    "llama-3.1-8b": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    }),
}  # fmt: skip
EMPTY = {"decode": [], "prefill": [], "memory": {}}


def model_of(shape: str, dtype: torch.dtype) -> torch.nn.Module:
    """A random model on the GPU."""
    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(kind, **sizes, max_position_embeddings=262144)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return attach(model.eval().requires_grad_(False))


@torch.inference_mode()
def measured(model: torch.nn.Module, args: argparse.Namespace) -> Iterator[dict]:
    """One measurement after the other, as it is made."""
    for tokens in args.decode_at:
        yield {"decode": [bench.decode(model, tokens, 15)]}
    for tokens in args.prefill_at:
        yield {"prefill": [bench.prefills(model, tokens, 2)]}
    for name in bench.METHODS if args.memory_at else ():
        yield {"memory": {name: bench.bounded_memory(model, name, args.memory_at)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--decode-at", nargs="*", type=int, default=[8192, 32768])
    parser.add_argument("--prefill-at", nargs="*", type=int, default=[8192])
    parser.add_argument("--memory-at", nargs="*", type=int, default=[8192, 32768])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # random models have no calibration
    found = {}
    for shape in args.shapes:
        for dtype in args.dtypes:
            model = model_of(shape, getattr(torch, dtype))
            print(f"{shape}, {dtype}, {torch.cuda.get_device_name()}", flush=True)
            result = found.setdefault(shape, {}).setdefault(dtype, [])
            for part in measured(model, args):
                result.append(part)
                print(bench.table({dtype: EMPTY | part}), flush=True)
                if args.out:
                    args.out.write_text(json.dumps(found, indent=1))
            del model


if __name__ == "__main__":
    main()
