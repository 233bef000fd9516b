"""Decode steps, prefill and memory on a GPU, of random models in the shapes of real ones.

Random weights cost what trained ones do, so nothing has to be downloaded.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvbudget import attach
from kvbudget.paper.bench import table
from kvbudget.run.bench import peak
from kvbudget.run.bench.measure import Found, Lengths, in_turn
from kvbudget.run.bench.subjects import EVICTING, theirs
from kvbudget.run.files import write_json

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


def model_of(shape: str, dtype: torch.dtype) -> torch.nn.Module:
    """A random model on the GPU."""
    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(kind, **sizes, max_position_embeddings=262144)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return attach(model.eval().requires_grad_(False))


@torch.inference_mode()
def measured(model: torch.nn.Module, lengths: Lengths) -> Iterator[list[dict]]:
    """One measurement after the other. Peaks are of the device, so they need no own process."""
    yield from in_turn(model, lengths)
    for tokens in lengths.memory:
        for name in EVICTING:
            yield [peak.reading_of(model, name, tokens)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[8192, 32768])
    parser.add_argument("--prefill-at", nargs="*", type=int, default=[8192])
    parser.add_argument("--memory-at", nargs="*", type=int, default=[8192, 32768])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # random models have no calibration
    lengths = Lengths(args.lengths, args.prefill_at, args.memory_at, parts=(), rounds=15)
    told = {}
    for shape in args.shapes:
        found = Found(shape)
        for dtype in args.dtypes:
            model = model_of(shape, getattr(torch, dtype))
            print(f"{shape}, {dtype}, {torch.cuda.get_device_name()}", flush=True)
            found.left_out = theirs(model)[1]
            for rows in measured(model, lengths):
                found.add(dtype, rows)
                told[shape] = found.told()
                if args.out:
                    write_json(args.out, told)
            del model
        print(table.report(told[shape]), flush=True)


if __name__ == "__main__":
    main()
