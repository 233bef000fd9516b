"""kvpress, with presses whose definition is moved to ours: what differs, and nothing else.

Run by the Python of the peers' environment: a list of requests as JSON on standard input, and a
list of the lines that answer each on standard output.
"""

import json
import sys
from dataclasses import dataclass, field

import kvpress
import torch

from kvbudget.run.peers.worker import Request, work


def keeping_newest(press: type) -> type:
    """A press that never evicts the newest token, as our caches never do."""

    class Keeping(press):
        def score(self, *args, **kwargs):
            scores = super().score(*args, **kwargs)
            scores[..., -1] = scores.max() + 1
            return scores

    return Keeping


@dataclass
class H2OPress(kvpress.ObservedAttentionPress):
    """Sums of attention, not means over the queries that could attend, and the newest half."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        means = super().score(module, hidden_states, keys, values, attentions, kwargs)
        tokens = keys.shape[2]
        scores = means * torch.arange(tokens, 0, -1)
        recent = kvpress.utils.compute_n_kept(tokens, self.compression_ratio) // 2
        scores[..., tokens - recent :] = scores.max() + 1
        return scores


@dataclass
class PyramidPress(kvpress.PyramidKVPress):
    """Given budgets, a layer each: those of the authors' code, which add up."""

    budgets: list[int] = field(default_factory=list)

    def get_layer_budget(self, module, q_len):
        return self.budgets[module.layer_idx]


kvpress.KeyDiffKeeping = keeping_newest(kvpress.KeyDiffPress)
kvpress.ExpectedAttentionKeeping = keeping_newest(kvpress.ExpectedAttentionPress)
kvpress.H2OPress, kvpress.PyramidPress = H2OPress, PyramidPress

if __name__ == "__main__":
    json.dump([list(work(Request(**each))) for each in json.load(sys.stdin)], sys.stdout)
