"""How fast and how small the cache is, as ratios within one run on one machine.

    python -m kvbudget.bench --model-dir DIR --verified FILE --out results/bench/KEY.json

Times are medians of interleaved rounds: what is compared takes turns, so that a machine whose speed
drifts slows all alike. Caches are filled with random keys and values, which cost what real ones do.
"""

import argparse
import contextlib
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from kvbudget import attention
from kvbudget.cache.budgeted import BudgetedCache, attach, geometry_of, make_cache
from kvbudget.errors import run_cli
from kvbudget.measure import memory
from kvbudget.measure.time import Stopwatch
from kvbudget.models.load import load
from kvbudget.record import provenance, write_json

METHODS = ("h2o", "streaming-llm", "head-aware")
SHARE = "20%"
CHUNK = 512  # tokens of a piece in bounded prefill


def interleaved(subjects: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each subject, which take turns; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, subject in subjects.items():
            watch = Stopwatch()
            subject()
            if turn:
                seconds[name].append(watch.seconds())
    return {name: statistics.median(times) for name, times in seconds.items()}


def filled(model: PreTrainedModel, method: str, tokens: int) -> Cache:
    """A cache of a method after `tokens` random tokens; `"stock"` is transformers' own."""
    geometry = geometry_of(model)
    size = (1, geometry.kv_heads, tokens, geometry.head_dim)
    budget = None if method == "full" else SHARE
    stock = method == "stock"
    cache = DynamicCache() if stock else make_cache(model, method, budget)
    for index in geometry.layers:
        key, value = (torch.randn(size, dtype=model.dtype, device=model.device) for _ in "kv")
        cache.update(key, value, index)
        if not stock:
            query = torch.randn(1, geometry.query_heads, *size[2:], dtype=model.dtype)
            cache.layers[index].attend(query.to(model.device), 0.1, None, None)
    return cache


def step(model: PreTrainedModel, cache: Cache) -> Callable[[], None]:
    """One decode step on a cache."""
    token = torch.tensor([[7]], device=model.device)
    name = attention.NAME if isinstance(cache, BudgetedCache) else "sdpa"

    def run() -> None:
        model.set_attn_implementation(name)
        model(token, past_key_values=cache)

    return run


def prefill(model: PreTrainedModel, method: str, tokens: int) -> Callable[[], None]:
    """Prefill and, for a bounded method, compression of a random prompt."""
    ids = torch.randint(5, 90, (1, tokens), device=model.device)
    budget = None if method in ("full", "stock") else SHARE

    def run() -> None:
        model.set_attn_implementation("sdpa" if method == "stock" else attention.NAME)
        cache = DynamicCache() if method == "stock" else make_cache(model, method, budget)
        model(ids, past_key_values=cache, logits_to_keep=1)

    return run


def read_bandwidth() -> float:
    """Bytes a second that this process reads from memory, in long sums."""
    block = torch.ones(2**27)  # 512 MiB, far more than any cache of the processor
    seconds = interleaved({"sum": lambda: block.sum()}, 5)["sum"]
    return block.numel() * block.element_size() / seconds


def decode(model: PreTrainedModel, tokens: int, rounds: int) -> dict:
    """Decode steps after `tokens` tokens: each method over transformers' full cache."""
    methods = ("stock", "full", *METHODS)
    caches = {method: filled(model, method, tokens) for method in methods}
    times = interleaved({name: step(model, cache) for name, cache in caches.items()}, rounds)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    bandwidth = read_bandwidth()
    rows = {}
    for name in ("full", *METHODS):
        kept = caches[name].allocated_bytes()
        rows[name] = {
            "step_ms": 1000 * times[name],
            "over_stock": times[name] / times["stock"],
            "over_floor": times[name] / ((weights + kept) / bandwidth),
            "cache_bytes": kept,
        }
    return {"tokens": tokens, "stock_ms": 1000 * times["stock"], "methods": rows}


def prefills(model: PreTrainedModel, tokens: int, rounds: int) -> dict:
    """Prefill with compression over the stock prefill."""
    methods = ("stock", "full", *METHODS)
    times = interleaved({name: prefill(model, name, tokens) for name in methods}, rounds)
    over = {name: times[name] / times["stock"] for name in methods[1:]}
    return {"tokens": tokens, "stock_s": times["stock"], "over_stock": over}


def release_freed_memory() -> None:
    """Give freed memory back to the system, or what follows would reuse it and seem to need none.

    Only glibc can; elsewhere the figures of process memory are too low.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def bounded_memory(model: PreTrainedModel, lengths: list[int], budget: int) -> dict:
    """Peak process memory above the weights at several lengths, with bounded prefill."""
    model.set_attn_implementation(attention.NAME)
    rows = {}
    for method in METHODS:
        for length in lengths:
            ids = torch.randint(5, 90, (1, length), device=model.device)
            cache = make_cache(model, method, budget, prompt_tokens=length)
            release_freed_memory()
            memory.mark_peak()
            before = memory.peak_rss_bytes()
            for piece in ids.split(CHUNK, dim=1):
                model(piece, past_key_values=cache, logits_to_keep=1)
            rows.setdefault(method, {})[length] = {
                "rss_above_start": memory.peak_rss_bytes() - before,
                "peak_cuda_bytes": memory.peak_cuda_bytes(),
                "cache_bytes": cache.allocated_bytes(),
                "over_plan": cache.allocated_bytes() / cache.planned_bytes(model.dtype.itemsize),
            }
    return {"budget": budget, "chunk": CHUNK, "methods": rows}


@torch.inference_mode()
def bench(args: argparse.Namespace, dtype: str) -> dict:
    """All measurements of one model in one dtype."""
    started = time.time()
    model, _ = load(args.model_dir, dtype)
    attach(model)
    return {
        "decode": [decode(model, tokens, args.rounds) for tokens in args.decode_at],
        "prefill": prefills(model, args.prefill_at, 2),
        "memory": bounded_memory(model, [2048, 4096, 8192], 512),
        "provenance": provenance(model, json.loads(args.verified.read_text())["sha256"], started),
    }


def table(results: dict) -> str:
    """The ratios, for reading."""
    lines = []
    for dtype, result in results.items():
        for each in result["decode"]:
            for name, row in each["methods"].items():
                lines.append(
                    f"{dtype:9} decode  {each['tokens']:6} {name:14} {row['step_ms']:8.1f} ms "
                    f"{row['over_stock']:6.2f} x stock {row['over_floor']:6.2f} x floor"
                )
        for name, ratio in result["prefill"]["over_stock"].items():
            tokens = result["prefill"]["tokens"]
            lines.append(f"{dtype:9} prefill {tokens:6} {name:14} {ratio:20.2f} x stock")
        for name, rows in result["memory"]["methods"].items():
            for length, row in rows.items():
                lines.append(
                    f"{dtype:9} memory  {length:6} {name:14} "
                    f"{row['rss_above_start'] / 2**20:7.0f} MiB above start, "
                    f"cache {row['over_plan']:.3f} x plan"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--decode-at", nargs="+", type=int, default=[4096, 8000])
    parser.add_argument("--prefill-at", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    results = {dtype: bench(args, dtype) for dtype in args.dtypes}
    write_json(args.out, {"schema": 1, "model": args.model_dir.name, "results": results})
    print(table(results))


if __name__ == "__main__":
    run_cli(main)
