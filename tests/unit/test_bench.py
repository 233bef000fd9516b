"""The bench runs on a tiny model; its figures mean nothing there, but its ratios must be ratios."""

import torch
from tiny import tiny_model

from kvbudget import attach
from kvbudget.run.bench import METHODS, bounded_memory, decode, interleaved, prefills, table


def test_what_is_compared_takes_turns():
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


@torch.inference_mode()
def test_all_measurements_of_a_tiny_model():
    model = attach(tiny_model("llama"))
    result = {
        "decode": [decode(model, 200, 1)],
        "prefill": [prefills(model, 90, 1)],
        "memory": {name: bounded_memory(model, name, [90, 180], 40) for name in METHODS},
    }
    rows = result["decode"][0]["methods"]
    assert set(rows) == {"alone", "full", *METHODS}
    for name in METHODS:
        assert rows[name]["cache_bytes"] < 0.4 * rows["full"]["cache_bytes"]
        assert rows[name]["over_stock"] > 0
        by_length = result["memory"][name]
        assert by_length[90]["cache_bytes"] == by_length[180]["cache_bytes"]
    assert sum(result["decode"][0]["profile"].values()) <= 1
    assert len(table({"float32": result}).splitlines()) == 5 + 4 * len(METHODS)
