"""One cell: a model, a method, a task, a length and a budget in; one JSON record out.

    python -m kvbudget.run.cell --spec JSON --code DIGEST --model-dir DIR --verified FILE --text FILE \
        [--calibration FILE] --out FILE

How contexts are read and measured is the task's protocol (`kvbudget.run.protocols`).
Contexts are appended to a side file as they finish, so a killed cell goes on where it stopped. The
side file outlives the cell, as Snakemake deletes the record of a job whose end it did not see; once
it has, the workflow removes the file.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from kvbudget.api import attach
from kvbudget.errors import UserError, run_cli
from kvbudget.run import protocols
from kvbudget.run.record import provenance, write_json
from kvbudget.run.resume import finished
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.sources.load import load
from kvbudget.sources.pypi import file_sha256
from kvbudget.sources.text import read_passages
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Context, Request

WARM_UP = 64  # tokens read before anything is timed


def samples_of(spec: dict, tokenizer: PreTrainedTokenizerBase, text: Path) -> list[Context]:
    """Contexts of a cell, which depend on the tokenizer, task, length and seed alone."""
    kind = spec["task"]["kind"]
    request = Request(
        tokenizer,
        read_passages(text),
        length=spec["length"],
        contexts=spec["samples"]["contexts"],
        questions=spec["samples"]["questions"],
        seed=spec["seed"],
        split="test",
    )
    return tasks.load(kind).make(request, tasks.options_from(kind, spec["task"]))


def results(
    protocol: ModuleType, runner: Runner, contexts: list[Context], side: Path, identity: dict
) -> Iterator[dict]:
    """Results of all contexts in order; those in the side file are not computed again."""
    done = finished(side, identity)
    with side.open("a", encoding="utf-8") as log:
        for index, context in enumerate(tqdm(contexts, unit="context")):
            if index < len(done):
                yield done[index]
                continue
            result = protocol.run(runner, context)
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
    calibration = json.loads(args.calibration.read_text()) if args.calibration else None
    if calibration and calibration["model_sha256"] != verified["sha256"]:
        raise UserError(
            f"{args.calibration} is the calibration of another model than {args.model_dir}; delete it"
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
    kind = spec["task"]["kind"]
    runner = Runner(
        attach(model),
        tokenizer,
        tasks.load(kind),
        spec["method"],
        spec["budget"],
        calibration,
        spec["task"].get("chunk"),
    )
    prompt = contexts[0].ids
    runner.read(runner.cache(len(prompt)), prompt[:WARM_UP])
    protocol = protocols.load(tasks.kind(kind).protocol)
    side = args.out.with_suffix(".contexts.jsonl")
    identity = {"spec": spec, "code": args.code}
    measured = summarise(list(results(protocol, runner, contexts, side, identity)))
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
    parser.add_argument("--calibration", type=Path, help="of the model's heads")
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
