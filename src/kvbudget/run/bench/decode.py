"""Decode steps on filled caches, and the bytes of these."""

import torch
from transformers import Cache, PreTrainedModel

from kvbudget.run.bench.fill import fill
from kvbudget.run.bench.size import sizes
from kvbudget.run.bench.subjects import OURS, PRESSED, SHARE, STOCK, attend_for, ours, theirs
from kvbudget.run.bench.timing import Turn, interleaved

ALONE = "alone"
FEW = 4  # tokens of a context that costs nothing beside the model's weights


def measure(model: PreTrainedModel, tokens: int, rounds: int) -> list[dict]:
    """A row for each subject after `tokens` tokens: its step over transformers' full cache, over
    the model with next to no context (`"alone"`, what no cache can save), and over the floor:
    reading the weights and what is kept once, at the bandwidth measured here."""
    make, _ = theirs(model)
    caches = {name: cache() for name, cache in make.items()}
    caches |= {name: ours(model, name) for name in OURS} | {ALONE: ours(model, "full")}
    counts = dict.fromkeys(caches, tokens) | {PRESSED: round(SHARE * tokens), ALONE: FEW}
    fill(model, [(cache, counts[name]) for name, cache in caches.items()])
    held = {name: sizes(cache, model.dtype.itemsize) for name, cache in caches.items()}
    seconds = interleaved({name: step(model, cache) for name, cache in caches.items()}, rounds)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    bandwidth = read_bandwidth()
    return [
        {
            "tokens": tokens,
            "subject": name,
            "step_ms": 1000 * seconds[name],
            "step_over_stock": seconds[name] / seconds[STOCK],
            "step_over_alone": seconds[name] / seconds[ALONE],
            "step_over_floor": seconds[name]
            / ((weights + held[name]["allocated_bytes"]) / bandwidth),
            **held[name],
        }
        for name in caches
    ]


def step(model: PreTrainedModel, cache: Cache) -> Turn:
    """One decode step on a cache."""
    token = torch.tensor([[7]], device=model.device)
    return Turn(
        lambda: model(token, past_key_values=cache), before=lambda: attend_for(model, cache)
    )


def read_bandwidth() -> float:
    """Bytes a second that this process reads from memory, in long sums."""
    block = torch.ones(2**27)  # 512 MiB, far more than any cache of the processor
    seconds = interleaved({"sum": Turn(block.sum)}, 5)["sum"]
    return block.numel() * block.element_size() / seconds
