"""One cell: a model, a method, a task, a length and a budget in; one JSON record out.

    python -m kvbudget.cell --spec JSON --code DIGEST --model-dir DIR --verified FILE --text FILE \
        [--profile FILE] --out FILE

Question-agnostic: the context is read and compressed before any question arrives, and every
question is asked of the same compressed context; a task that measures otherwise says how (`run`).
Contexts are appended to a side file as they finish, so a killed cell goes on where it stopped. The
side file outlives the cell, as Snakemake deletes the record of a job whose end it did not see; once
it has, the workflow removes the file.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget import attach, make_cache, tasks
from kvbudget.cache.budgeted import BudgetedCache
from kvbudget.errors import UserError, run_cli
from kvbudget.measure import memory
from kvbudget.measure.time import Stopwatch
from kvbudget.models.load import load
from kvbudget.models.pypi import file_sha256
from kvbudget.record import provenance, replace_text, write_json
from kvbudget.tasks.base import Context, Question
from kvbudget.text import read_passages

WARM_UP = 64  # tokens read before anything is timed


@dataclass
class Runner:
    """A model with a method, ready to read contexts and answer questions about them.

    Args:
        model: attached.
        tokenizer: the model's.
        task: module of the task, which scores answers.
        method: `policy` and its options, as in the config.
        budget: as in the config; None for the full cache.
        profile: of the model's heads, for policies that use one.
        chunk: tokens of a context and of a reference answer that are read at once; None reads
            each whole.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: ModuleType
    method: dict
    budget: int | str | None
    profile: dict | None
    chunk: int | None

    def cache(self, prompt_tokens: int | None = None) -> BudgetedCache:
        """An empty cache of the method, for a prompt of that length (by default: what comes)."""
        options = {
            key: value for key, value in self.method.items() if key not in ("name", "policy")
        }
        if self.profile is not None:
            options["profile"] = self.profile
        return make_cache(
            self.model, self.method["policy"], self.budget, prompt_tokens=prompt_tokens, **options
        )

    def run(self, context: Context) -> dict:
        """Read a context and ask its questions: samples, memory and timing of one context."""
        memory.mark_peak()
        cache = self.cache(len(context.ids))
        watch = Stopwatch()
        for piece in self.pieces(context.ids):
            last = self.read(cache, piece)[-1]
        cache.plan.policy.finish(self.model, self.tokenizer, cache, context.ids)
        prefill_s = watch.seconds()
        # Read here, as what follows holds snapshots that only the protocol needs.
        peaks = {
            "peak_rss_bytes": memory.peak_rss_bytes(),
            "peak_cuda_bytes": memory.peak_cuda_bytes(),
        }
        state = cache.snapshot()
        compressed = self.cache_bytes(cache, len(context.ids))
        slots = [[len(kept) for kept in layer.kept_positions()] for layer in cache.budgeted]
        samples, steps = [], []
        for question in context.questions:
            cache.restore(state)
            # After the question, the cache is the same for scoring the reference and for answering.
            first = self.read(cache, question.ids)[-1] if question.ids else last
            asked = cache.snapshot()
            nll = self._answer_nll(cache, question, first)
            cache.restore(asked)
            output, times = self._generate(cache, question, first)
            steps += times
            samples.append(
                {
                    "id": question.id,
                    "context_id": context.id,
                    "prompt_tokens": len(context.ids) + len(question.ids),
                    "budget_tokens": cache.plan.tokens(),
                    "score": self.task.score(output, question.references),
                    "nll": nll,
                    "output": output,
                    "reference": question.references,
                }
            )
        return {
            "samples": samples,
            "memory": {**compressed, **peaks},
            "timing": {"prefill_s": prefill_s, "decode_s": steps},
            "slots": slots,
        }

    def cache_bytes(self, cache: BudgetedCache, tokens: int) -> dict[str, int]:
        """Bytes of a cache that has read a prompt of so many tokens: planned, allocated, full."""
        itemsize = self.model.dtype.itemsize
        full = cache.planned_bytes(itemsize, tokens=tokens)
        return {
            "cache_bytes_planned": full if self.budget is None else cache.planned_bytes(itemsize),
            "cache_bytes_allocated": cache.allocated_bytes(),
            "cache_bytes_full": full,
            "cache_bytes_sliding": cache.sliding_bytes(),
        }

    def stops(self) -> set[int]:
        """Tokens that end the model's answer."""
        stops = self.model.generation_config.eos_token_id
        return {stops} if isinstance(stops, int) else set(stops or ())

    def finite(self, nll: float, answer: str) -> float:
        """A likelihood, or an error that says what to do about one that is no number."""
        if not math.isfinite(nll):
            raise UserError(
                f"the likelihood of the answer to {answer} is {nll} in {self.model.dtype}: "
                "the model overflows; use another dtype (float32 is the safest)"
            )
        return nll

    def read(self, cache: BudgetedCache, ids: list[int], logits: int = 1) -> Tensor:
        """Logits of the last `logits` of some tokens, read in one forward pass."""
        inputs = torch.tensor([ids], device=self.model.device)
        return self.model(inputs, past_key_values=cache, logits_to_keep=logits).logits[0]

    def pieces(self, ids: list[int]) -> Iterator[list[int]]:
        """Some tokens in the portions in which they are read."""
        step = self.chunk or len(ids)
        return (ids[start : start + step] for start in range(0, len(ids), step))

    def _answer_nll(self, cache: BudgetedCache, question: Question, first: Tensor) -> float:
        """Mean negative log-likelihood of a token of the reference answer, in nats.

        `first` are the logits that predict its first token. The answer is read in chunks.
        """
        total = 0.0
        for piece in self.pieces(question.answer_ids):
            known = self.read(cache, piece, logits=len(piece))
            predicted = torch.cat((first[None], known[:-1])).float()
            target = torch.tensor(piece, device=predicted.device)
            total += torch.nn.functional.cross_entropy(predicted, target, reduction="sum").item()
            first = known[-1]
        return self.finite(total / len(question.answer_ids), question.id)

    def _generate(
        self, cache: BudgetedCache, question: Question, first: Tensor
    ) -> tuple[str, list[float]]:
        """Greedy answer from the logits after the question, and the seconds of each decode step."""
        stops = self.stops()
        last, output, seconds = first, [], []
        while len(output) < question.max_new_tokens:
            token = int(last.argmax())
            if token in stops:
                break
            output.append(token)
            watch = Stopwatch()
            last = self.read(cache, [token])[-1]
            seconds.append(watch.seconds())
        return self.tokenizer.decode(output, skip_special_tokens=True), seconds


def samples_of(spec: dict, tokenizer: PreTrainedTokenizerBase, text: Path) -> list[Context]:
    """Contexts of a cell, which depend on the tokenizer, task, length and seed alone."""
    return tasks.get(spec["task"]["kind"]).make(
        tokenizer,
        read_passages(text),
        length=spec["length"],
        contexts=spec["samples"]["contexts"],
        questions=spec["samples"]["questions"],
        seed=spec["seed"],
        split="test",
        options=spec["task"],
    )


def finished(side: Path, identity: dict) -> list[dict]:
    """Contexts that an earlier, interrupted run of the same cell has finished.

    The first line of the side file tells which cell it belongs to. What follows a line that was
    cut off by a kill is dropped. The side file is made anew, so that a process of the killed run
    that is still alive goes on writing into the old one, which no one reads.
    """
    done: list[dict] = []
    try:
        lines = side.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            entry = None
        if entry is None or (number == 0 and entry != identity):
            break
        if number:
            done.append(entry)
    side.parent.mkdir(parents=True, exist_ok=True)
    replace_text(side, "".join(json.dumps(entry) + "\n" for entry in [identity, *done]))
    return done


def results(runner: Runner, contexts: list[Context], side: Path, identity: dict) -> Iterator[dict]:
    """Results of all contexts in order; those in the side file are not computed again."""
    done = finished(side, identity)
    run = getattr(runner.task, "run", Runner.run)
    with side.open("a", encoding="utf-8") as log:
        for index, context in enumerate(tqdm(contexts, unit="context")):
            if index < len(done):
                yield done[index]
                continue
            result = run(runner, context)
            log.write(json.dumps(result) + "\n")
            log.flush()
            yield result


def summarise(parts: list[dict]) -> dict:
    """The record's measures: means of bytes, highest peaks, medians of times."""

    def column(group: str, key: str) -> list:
        return [part[group][key] for part in parts]

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
            "prefill_s": statistics.median(column("timing", "prefill_s")),
            "decode_ms_per_token": 1000 * statistics.median(steps) if steps else None,
        },
        "allocation": {"slots": slots.tolist()},
    }


@torch.inference_mode()
def run_cell(args: argparse.Namespace) -> dict:
    """Compute the record of the cell that the arguments describe."""
    spec, started = args.spec, time.time()
    verified = json.loads(args.verified.read_text())
    profile = json.loads(args.profile.read_text()) if args.profile else None
    if profile and profile["model_sha256"] != verified["sha256"]:
        raise UserError(
            f"{args.profile} is the profile of another model than {args.model_dir}; delete it"
        )
    watch = Stopwatch()
    model, tokenizer = load(args.model_dir, spec["dtype"])
    load_s = watch.seconds()
    if spec["length"] > verified["context"]:
        raise UserError(
            f"length {spec['length']} exceeds the {verified['context']} tokens that model "
            f"{spec['model']} reads; drop it from the experiment or use another model"
        )
    contexts = samples_of(spec, tokenizer, args.text)
    runner = Runner(
        attach(model),
        tokenizer,
        tasks.get(spec["task"]["kind"]),
        spec["method"],
        spec["budget"],
        profile,
        spec["task"].get("chunk"),
    )
    prompt = contexts[0].ids
    runner.read(runner.cache(len(prompt)), prompt[:WARM_UP])
    side = args.out.with_suffix(".contexts.jsonl")
    identity = {"spec": spec, "code": args.code}
    measured = summarise(list(results(runner, contexts, side, identity)))
    measured["timing"]["load_s"] = load_s
    measured["allocation"]["layers"] = list(runner.cache().plan.geometry.layers)
    record = {
        "schema": 1,
        **identity,
        **measured,
        "provenance": provenance(model, verified["sha256"], started)
        | {"text_sha256": file_sha256(args.text)},
    }
    write_json(args.out, record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--spec", required=True, type=json.loads, help="the cell, as JSON")
    parser.add_argument("--code", required=True, help="digest of the code that the cell runs")
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--text", required=True, type=Path, help="the haystack")
    parser.add_argument("--profile", type=Path, help="of the model's heads")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    try:
        run_cell(args)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of device memory at length {args.spec['length']}: lower it, or set "
            f"prefill_chunk for the method, or use a larger device ({error})"
        ) from None


if __name__ == "__main__":
    run_cli(main)
