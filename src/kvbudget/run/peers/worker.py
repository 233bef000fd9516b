"""kvpress at work: contexts and questions in, answers out. Runs in the environment of `make peers`.

kvpress needs another transformers than this package, so it has a Python of its own, which runs this
file as `python -m kvbudget.run.peers.worker`. So it imports nothing of this package that needs more
than torch. Standard input is one request as JSON (`Request`); standard output has a line of JSON of
where this is, then one for each context.
"""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kvbudget.run import memory
from kvbudget.run.job import WARM_UP
from kvbudget.run.machine import machine
from kvbudget.run.peers import compressed as contexts
from kvbudget.run.peers import questions
from kvbudget.run.stopwatch import Stopwatch

#: Some presses draw random matrices: anew for each context, as a cell that goes on after it was
#: interrupted is to give what one that was not does.
_SEED = 0
#: Whose versions a result depends on.
LIBRARIES = ("kvpress", "torch", "transformers", "numpy", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        model_dir: safetensors and a tokenizer; nothing is fetched.
        dtype, device: as torch names them.
        threads: to compute with.
        press: `press`, a class of kvpress, its `arguments`, and `safeguard`: 1, or the share of its
            budget that each head keeps under AdaKV over it.
        contexts: `ids`, the `budget` in tokens of a KV head, and `questions`, each with `ids`,
            `answers` (ids of the answers that are given) and `max_new_tokens`.
        details: whether to tell the positions that are kept, and the logits after each question and
            after each token of its answers.
    """

    model_dir: str
    dtype: str
    device: str
    threads: int
    press: dict[str, Any]
    contexts: list[dict[str, Any]]
    details: bool = False


def main() -> None:
    """Answer the request on standard input."""
    request = Request(**json.load(sys.stdin))
    torch.set_num_threads(request.threads)
    for line in work(request):
        print(json.dumps(line), flush=True)


def work(request: Request) -> Iterator[dict[str, Any]]:
    """Where this is, then the result of each context."""
    import kvpress  # patches transformers' attention, so before a model is loaded

    watch = Stopwatch()
    needs_weights = issubclass(
        getattr(kvpress, request.press["press"]), kvpress.ObservedAttentionPress
    )
    model = AutoModelForCausalLM.from_pretrained(
        request.model_dir,
        dtype=getattr(torch, request.dtype),
        attn_implementation="eager" if needs_weights else "sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    model.eval().requires_grad_(False).to(request.device)
    yield {
        "versions": versions() | {"python": platform.python_version()},
        "machine": machine(model.device),
        "load_s": watch.seconds(),
    }
    for context in request.contexts[:1]:
        with torch.no_grad():
            model.model(input_ids=torch.tensor([context["ids"][:WARM_UP]], device=model.device))
    for context in request.contexts:
        press = contexts.make_press(kvpress, request.press, len(context["ids"]), context["budget"])
        torch.manual_seed(_SEED)
        with torch.no_grad():
            yield _result(model, press, context, request.details)


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def _result(model: PreTrainedModel, press: Any, context: dict, details: bool) -> dict[str, Any]:
    memory.mark_peak()
    watch = Stopwatch()
    compressed = contexts.read(model, press, context["ids"], keys=details)
    seconds = watch.seconds()
    peaks = {
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "peak_cuda_bytes": memory.peak_cuda_bytes(),
    }
    result = {"allocated_bytes": contexts.allocated_bytes(compressed.cache)}
    if details:
        result["kept"] = contexts.kept_positions(compressed)
    return result | {
        "slots": contexts.slots(model, compressed),
        "prefill_s": seconds,
        "decode_s": questions.timed(model, compressed, context["questions"][0]),
        "answers": questions.ask(model, compressed, context["questions"], details),
        **peaks,
    }


if __name__ == "__main__":
    main()
