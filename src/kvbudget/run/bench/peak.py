"""Peak memory of a process that reads a prompt in pieces, each length in a process of its own.

In one process the peak of a length would hide in that of a longer one before it, and what the
allocator keeps of one prompt would serve the next.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import Cache, PreTrainedModel

from kvbudget.api import attach
from kvbudget.run import memory
from kvbudget.run.bench.prefill import CHUNK, read
from kvbudget.run.bench.subjects import STOCK, ours, stock
from kvbudget.sources.load import load

BOUND = 512  # tokens of the budget


def measure(model_dir: Path, dtype: str, name: str, tokens: int) -> dict:
    """A row of `reading_of` for `"stock"` or one of ours, from a fresh process."""
    # Not forked: the memory of this process would count.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(_measure, model_dir, dtype, name, tokens).result()


@torch.inference_mode()
def _measure(model_dir: Path, dtype: str, name: str, tokens: int) -> dict:
    model, _ = load(model_dir, dtype)
    return reading_of(attach(model), name, tokens)


def reading_of(model: PreTrainedModel, name: str, tokens: int) -> dict:
    """Peak of this process and of its GPU while it reads a random prompt in pieces of `CHUNK`
    tokens, into `BOUND` tokens a head where a method evicts; and how far that is above what the
    process holds once it has read one piece."""
    ids = torch.randint(5, 90, (1, tokens), device=model.device)
    # Brings in the weights, and what libraries allocate once.
    read(model, ids[:, :CHUNK], _empty(model, name, tokens), CHUNK)
    memory.mark_peak()
    start = memory.peak_rss_bytes()
    cache = _empty(model, name, tokens)
    read(model, ids, cache, CHUNK)
    return {
        "tokens": tokens,
        "subject": name,
        "peak_bytes": memory.peak_rss_bytes(),
        "peak_above_start_bytes": memory.peak_rss_bytes() - start,
        "peak_cuda_bytes": memory.peak_cuda_bytes(),
    }


def _empty(model: PreTrainedModel, name: str, tokens: int) -> Cache:
    return stock(model) if name == STOCK else ours(model, name, BOUND, prompt_tokens=tokens)
