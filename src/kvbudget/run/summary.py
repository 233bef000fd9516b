"""The measures of a cell from those of its contexts."""

import statistics

import torch


def summarise(parts: list[dict]) -> dict:
    """The record's measures: means of bytes, highest peaks, medians of times.

    A decode step is one of a sequence alone, also where questions were answered together. A context
    that was adopted has no times and no peak, one that was read beside others no peak.
    """

    def column(group: str, key: str) -> list:
        return [part[group][key] for part in parts]

    read = [part for part in parts if part["timing"]["prefill_s"] is not None]
    measures = {key: column("memory", key) for key in parts[0]["memory"]}
    steps = [seconds for part in parts for seconds in part["timing"]["decode_s"]]
    slots = torch.tensor([part["slots"] for part in parts], dtype=torch.float64).mean(dim=0)
    return {
        "samples": [sample for part in parts for sample in part["samples"]],
        "memory": {
            key: (
                round(statistics.mean(values))
                if key.startswith("cache")
                else max(values, key=lambda value: value or 0)
            )
            for key, values in measures.items()
        },
        "timing": {
            "prefill_s": statistics.median(part["timing"]["prefill_s"] for part in read),
            "decode_ms_per_token": 1000 * statistics.median(steps) if steps else None,
        },
        "allocation": {"slots": slots.tolist()},
        "contexts": {
            "read": [_name(part) for part in read],
            "adopted": [_name(part) for part in parts if part not in read],
        },
    }


def _name(part: dict) -> str:
    """Name of the context of a result."""
    return part["samples"][0]["context_id"]
