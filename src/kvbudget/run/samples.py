"""The contexts of a cell, whatever its method."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kvbudget.sources.haystack import read_passages
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Context, Request


def samples_of(spec: dict, tokenizer: PreTrainedTokenizerBase, text: Path) -> list[Context]:
    """Contexts of a cell, which depend on the tokenizer, task, length, split and seed alone."""
    kind = spec["task"]["kind"]
    request = Request(
        tokenizer,
        read_passages(text),
        length=spec["length"],
        contexts=spec["samples"]["contexts"],
        questions=spec["samples"]["questions"],
        seed=spec["seed"],
        split=spec["split"],
    )
    return tasks.load(kind).make(request, tasks.options_from(kind, spec["task"]))
