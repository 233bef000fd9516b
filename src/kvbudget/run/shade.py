"""One context, token by token: its texts, and which of them each head keeps under each method."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kvbudget.api import attach
from kvbudget.run.contexts import read_context
from kvbudget.run.runner import Runner
from kvbudget.run.samples import samples_of
from kvbudget.sources.load import load
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Question

#: Tokens before one from which its text is read: letters of some bytes span a few tokens.
_BEFORE = 4


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A method to show.

    Attributes:
        spec: of a cell; all but method and budget is that of the others.
        calibration: of the model's heads, for a method that uses one.
        path: of the cell's record.
    """

    spec: dict
    calibration: dict | None
    path: str


@torch.inference_mode()
def shade(shown: Sequence[Shown], model_dir: Path, text: Path) -> dict[str, Any]:
    """Read the first context of some cells by the method of each.

    Returns:
        `tokens` of the context as texts; its first `question` with its `reference`, and the
        `marked` tokens, those that hold it, as `[first, after last]`; the `layers` that have a
        budget; and of each of the `methods` the tokens that it has `kept`, by layer and KV head:
        one bit a token, the highest of a byte first, in base64.

    Raises:
        UserError: the model cannot be read, or a method cannot be used with it.
    """
    spec = shown[0].spec
    model, tokenizer = load(model_dir, spec["dtype"])
    attach(model)
    context = samples_of(spec, tokenizer, text)[0]
    task = tasks.load(spec["task"]["kind"])
    methods, layers = [], []
    for each in shown:
        method, budget = each.spec["method"], each.spec["budget"]
        chunk = each.spec["task"].get("chunk")
        runner = Runner(model, tokenizer, task, method, budget, each.calibration, chunk)
        cache = read_context(runner, context.ids).cache
        layers = list(cache.plan.geometry.layers)
        kept = [
            [_bits(positions, len(context.ids)) for positions in layer.kept_positions()]
            for layer in cache.budgeted
        ]
        methods.append({"method": method["name"], "record": each.path, "kept": kept})
    tokens, question = texts(tokenizer, context.ids), context.questions[0]
    return {
        "schema": 1,
        "model": spec["model"],
        "task": spec["task"]["name"],
        "length": spec["length"],
        "budget": spec["budget"],
        "context": context.id,
        "tokens": tokens,
        **_asked(tokenizer, question, tokens),
        "layers": layers,
        "methods": methods,
    }


def texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that all together are the text of all. A letter that takes
    several tokens is the last one's."""
    found, begun = [], 0
    for end in range(1, len(ids) + 1):
        start = max(0, begun - _BEFORE)
        before = tokenizer.decode(ids[start:begun])
        after = tokenizer.decode(ids[start:end])
        if after.endswith("\ufffd") and end - begun < _BEFORE:
            found.append("")  # part of a letter
            continue
        found.append(after[len(before) :])
        begun = end
    return found


def _asked(
    tokenizer: PreTrainedTokenizerBase, question: Question, tokens: list[str]
) -> dict[str, Any]:
    """The question in words, and where in the context its references stand."""
    whole = "".join(tokens).lower()
    ends = np.cumsum([len(token) for token in tokens])
    marked = []
    for reference in question.references if question.depth else []:
        place = whole.find(reference.lower())
        if place >= 0:
            last = place + len(reference) - 1
            marked.append([int(np.searchsorted(ends, at, side="right")) for at in (place, last)])
    return {
        "question": tokenizer.decode(question.ids),
        "reference": question.references,
        "marked": [[first, last + 1] for first, last in marked],
    }


def _bits(positions: Tensor, tokens: int) -> str:
    kept = np.zeros(tokens, dtype=bool)
    kept[positions.cpu().numpy()] = True
    return base64.b64encode(np.packbits(kept).tobytes()).decode()
