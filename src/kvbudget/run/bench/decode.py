"""How fast and how small the cache is, as ratios within one run on one machine.

Times are medians of interleaved rounds: what is compared takes turns, so that a machine whose speed
drifts slows all alike. Caches are filled with random keys and values, which cost what real ones do.
Decode steps are measured in every dtype, prefill and memory in the first: a processor without
half-precision instructions needs minutes for a half-precision prefill.
"""

import contextlib
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from kvbudget.api import attach, make_cache
from kvbudget.cache import attention
from kvbudget.cache.cache import BudgetedCache, geometry_of
from kvbudget.run import memory
from kvbudget.run.record import provenance
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.sources.load import load

METHODS: dict[str, dict] = {
    "h2o": {"method": "h2o"},
    "streaming-llm": {"method": "streaming-llm"},
    "head-aware": {"method": "head-aware"},
    "4-bit": {"method": "head-aware", "bits": 4},
}
SHARE = "20%"
BOUND = 512  # tokens of the budget in bounded prefill
CHUNK = 512  # and of its pieces
ALONE = 4  # tokens of a context that costs nothing beside the model's weights


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


def empty(model: PreTrainedModel, name: str, budget: int | str | None, **options) -> BudgetedCache:
    """An empty cache of `"full"` or of one of `METHODS`."""
    return make_cache(model, budget=budget, **METHODS.get(name, {"method": name}), **options)


def filled(model: PreTrainedModel, method: str, tokens: int) -> Cache:
    """A cache of a method after `tokens` random tokens; `"stock"` is transformers' own."""
    geometry = geometry_of(model)
    size = (1, geometry.kv_heads, tokens, geometry.head_dim)
    budget = None if method == "full" else SHARE
    stock = method == "stock"
    cache = DynamicCache() if stock else empty(model, method, budget)
    for index in geometry.layers:
        key, value = (torch.randn(size, dtype=model.dtype, device=model.device) for _ in "kv")
        cache.update(key, value, index)
        if not stock:
            query = torch.randn(
                1, geometry.query_heads, *size[2:], dtype=model.dtype, device=model.device
            )
            cache.layers[index].attend(query, 0.1, None, None)
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
        cache = DynamicCache() if method == "stock" else empty(model, method, budget)
        model(ids, past_key_values=cache, logits_to_keep=1)

    return run


def read_bandwidth() -> float:
    """Bytes a second that this process reads from memory, in long sums."""
    block = torch.ones(2**27)  # 512 MiB, far more than any cache of the processor
    seconds = interleaved({"sum": lambda: block.sum()}, 5)["sum"]
    return block.numel() * block.element_size() / seconds


def decode(model: PreTrainedModel, tokens: int, rounds: int) -> dict:
    """Decode steps after `tokens` tokens: each method over transformers' full cache, and over the
    floor: reading the weights and the kept keys and values once, at the bandwidth measured here.

    `"alone"` is the model with next to no context: what no cache can save.
    """
    caches = {name: filled(model, name, tokens) for name in ("stock", "full", *METHODS)}
    subjects = {name: step(model, cache) for name, cache in caches.items()}
    subjects["alone"] = step(model, filled(model, "full", ALONE))
    times = interleaved(subjects, rounds)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    bandwidth = read_bandwidth()
    rows = {}
    for name in ("alone", "full", *METHODS):
        kept = caches[name].allocated_bytes() if name in caches else 0
        rows[name] = {
            "step_ms": 1000 * times[name],
            "over_stock": times[name] / times["stock"],
            "over_floor": times[name] / ((weights + kept) / bandwidth),
            "cache_bytes": kept,
        }
    return {
        "tokens": tokens,
        "stock_ms": 1000 * times["stock"],
        "read_gb_per_s": bandwidth / 1e9,
        "methods": rows,
        "profile": profile(subjects["head-aware"]),
        "snapshot": snapshots(model, caches["head-aware"], rounds),
    }


def profile(subject: Callable[[], None], top: int = 5) -> dict[str, float]:
    """Share of a step's operator time of the operators that take most of it."""
    with torch.profiler.profile() as profiler:
        subject()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: event.self_cpu_time_total / total for event in events[:top]}


def snapshots(model: PreTrainedModel, cache: BudgetedCache, rounds: int) -> dict[str, float]:
    """Seconds to take a snapshot and to come back to it; and the time of the step after that,
    which copies what it is about to overwrite, over the time of the next."""
    run = step(model, cache)
    state = cache.snapshot()
    times = interleaved(
        {
            "snapshot_s": cache.snapshot,
            "restore_s": lambda: cache.restore(state),
            "first_step": run,
            "next_step": run,
        },
        rounds,
    )
    times["copy"] = times.pop("first_step") / times.pop("next_step")
    return times


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


def bounded_memory(
    model: PreTrainedModel, method: str, lengths: Sequence[int], budget: int = BOUND
) -> dict[int, dict]:
    """Peak process memory above the weights at several lengths, with bounded prefill."""
    model.set_attn_implementation(attention.NAME)
    rows = {}
    for length in lengths:
        ids = torch.randint(5, 90, (1, length), device=model.device)
        cache = empty(model, method, budget, prompt_tokens=length)
        release_freed_memory()
        memory.mark_peak()
        before, largest = memory.peak_rss_bytes(), 0
        watch = Stopwatch()
        for piece in ids.split(CHUNK, dim=1):
            model(piece, past_key_values=cache, logits_to_keep=1)
            largest = max(largest, cache.allocated_bytes())
        rows[length] = {
            "seconds": watch.seconds(),
            "rss_above_start": memory.peak_rss_bytes() - before,
            "peak_cuda_bytes": memory.peak_cuda_bytes(),
            "largest_cache_bytes": largest,
            "cache_bytes": cache.allocated_bytes(),
            "over_plan": cache.allocated_bytes() / cache.planned_bytes(model.dtype.itemsize),
        }
    return rows


@dataclass(frozen=True)
class Lengths:
    """What is measured: tokens of context before a decode step, of a prefill, of a bounded prefill;
    and rounds of decode steps."""

    decode: Sequence[int]
    prefill: Sequence[int]
    memory: Sequence[int]
    rounds: int


def bench(
    model_dir: Path, verified: Path, dtypes: Sequence[str], lengths: Lengths
) -> Iterator[dict]:
    """All measurements of one model; what is known so far by dtype, after each of them."""
    results = {}
    for dtype in dtypes:
        for so_far in _bench(model_dir, verified, dtype, lengths, whole=dtype == dtypes[0]):
            results[dtype] = so_far
            yield results


@torch.inference_mode()
def _bench(
    model_dir: Path, verified: Path, dtype: str, lengths: Lengths, whole: bool
) -> Iterator[dict]:
    started = time.time()
    model, _ = load(model_dir, dtype)
    attach(model)
    sha256 = json.loads(verified.read_text())["sha256"]
    result: dict = {"decode": [], "prefill": [], "memory": {}}
    for tokens in lengths.decode:
        result["decode"].append(decode(model, tokens, lengths.rounds))
        yield result
    if whole:
        for tokens in lengths.prefill:
            result["prefill"].append(prefills(model, tokens, 2))
            yield result
        for method in METHODS:
            result["memory"][method] = bounded_memory(model, method, lengths.memory)
            yield result
    yield result | {"provenance": provenance(model, sha256, started)}


def table(results: dict) -> str:
    """The ratios, a line each, for reading."""
    lines = []
    for dtype, result in results.items():
        for each in result["decode"]:
            for name, row in each["methods"].items():
                figures = f"{row['step_ms']:.1f} ms, {row['over_stock']:.2f} x stock"
                figures += f", {row['over_floor']:.2f} x floor"
                lines.append((dtype, "decode", each["tokens"], name, figures))
            figures = ", ".join(f"{name} {share:.0%}" for name, share in each["profile"].items())
            lines.append((dtype, "operators", each["tokens"], "head-aware", figures))
            cost = each["snapshot"]
            figures = f"taken in {1000 * cost['snapshot_s']:.1f} ms, restored in "
            figures += f"{1000 * cost['restore_s']:.1f} ms, next step {cost['copy']:.2f} x usual"
            lines.append((dtype, "snapshot", each["tokens"], "head-aware", figures))
        for each in result["prefill"]:
            for name, ratio in each["over_stock"].items():
                lines.append((dtype, "prefill", each["tokens"], name, f"{ratio:.2f} x stock"))
        for name, rows in result["memory"].items():
            for length, row in rows.items():
                figures = f"{row['rss_above_start'] / 2**20:.0f} MiB above start, cache "
                figures += f"{row['cache_bytes'] / 2**20:.1f} MiB, {row['over_plan']:.3f} x plan"
                lines.append((dtype, "memory", length, name, figures))
    return "\n".join("{:9} {:9} {:6} {:14} {}".format(*line) for line in lines)
