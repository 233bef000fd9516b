"""The profile of a model: what each head does, and what it loses with less memory.

    python -m kvbudget.heads.profile --model KEY --spec JSON --code DIGEST --model-dir DIR \
        --verified FILE --text FILE --out FILE

Made once for a model and used for every task, length and budget. The calibration prompts share no
seed, needle or passage with any test sample.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget import attach
from kvbudget.cache.budgeted import geometry_of
from kvbudget.cache.plan import Geometry
from kvbudget.errors import UserError, run_cli
from kvbudget.heads import signals
from kvbudget.heads.calibration import Calibration, mixture
from kvbudget.heads.classify import classify
from kvbudget.heads.curves import loss_curves
from kvbudget.heads.probe import Ablation, Probe, ablated, probe
from kvbudget.models.load import load
from kvbudget.policies.rules import RULES
from kvbudget.record import provenance, write_json
from kvbudget.text import read_passages

SHARES = [0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.55, 0.75, 1.0]
DEFAULTS = {
    "dtype": "float32",
    "seed": 1,
    "length": 1000,
    "contexts": 2,
    "tasks": ["needles", "recall", "reading"],
    "weights": True,
    "recent": 8,
    "thresholds": {"retrieval": 0.1, "induction": 0.3},
}
PERIOD = 128  # tokens of the random sequence that is read twice
ABLATED_AT_ONCE = 16  # heads; one sequence of the batch each


def make_profile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[str],
    spec: dict,
) -> dict:
    """Measure every head of an attached model on calibration prompts.

    `spec` overrides `DEFAULTS`; raises `UserError` for a key that is not there.
    """
    for key in spec:
        if key not in DEFAULTS:
            raise UserError(f"profile: unknown key {key!r}; known are {', '.join(DEFAULTS)}")
    spec = {**DEFAULTS, **spec}
    geometry = geometry_of(model)
    keys = ("tasks", "length", "contexts", "seed")
    prompts = mixture(tokenizer, passages, **{key: spec[key] for key in keys})
    heads = {"induction": _induction(model, geometry, spec["seed"])}
    found: dict[str, list[Tensor]] = {"retrieval": [], "local": [], "sink": [], "previous": []}
    curves: dict[str, list[dict]] = {}
    weights: dict[str, list[Tensor]] = {}
    successes = 0
    for prompt in tqdm(prompts, desc="calibration", unit="prompt"):
        cache, logits = probe(model, prompt.context, prompt.later)
        attention = [layer.probabilities[0].flatten(0, 1) for layer in cache.probes]
        for name in ("local", "sink", "previous"):
            found[name].append(torch.stack([getattr(signals, name)(each) for each in attention]))
        if prompt.needle and _answers_right(logits, prompt):
            successes += 1
            ids = prompt.context + prompt.later
            found["retrieval"].append(
                torch.stack(
                    [
                        signals.retrieval(each, ids, prompt.answers, prompt.needle)
                        for each in attention
                    ]
                )
            )
        curves.setdefault(prompt.task, []).append(
            [loss_curves(layer, RULES, SHARES, spec["recent"]) for layer in cache.probes]
        )
        if spec["weights"] and prompt.needle:  # where the answer has to come from the context
            weights.setdefault(prompt.task, []).append(
                causal_weights(model, cache, prompt, logits, geometry, spec["recent"])
            )
    if not found["retrieval"]:
        tqdm.write("warning: no calibration answer is right, so no head is seen to retrieve")
        found["retrieval"].append(torch.zeros(len(geometry.layers), geometry.query_heads))
    heads |= {name: torch.stack(each).mean(dim=0) for name, each in found.items()}
    heads = {name: _rounded(each) for name, each in heads.items()}
    if spec["weights"] and not weights:
        raise UserError(
            "profile: weights need answers in the context; add needles or recall to its tasks, or "
            "set weights: false"
        )
    profile = {
        "query_heads": geometry.query_heads,
        "kv_heads": geometry.kv_heads,
        "layers": list(geometry.layers),
        "heads": heads,
        "thresholds": spec["thresholds"],
        "classes": classify(heads, geometry.kv_heads, spec["thresholds"]),
        "shares": SHARES,
        "rules": sorted(RULES),
        "loss": _mean_curves(curves),
        "calibration": {"prompts": len(prompts), "answered_right": successes, **spec},
    }
    if weights:
        by_task = torch.stack([torch.stack(each).mean(dim=0) for each in weights.values()])
        profile["weights"] = _rounded(by_task.mean(dim=0))
    return profile


def causal_weights(
    model: PreTrainedModel,
    cache: Probe,
    prompt: Calibration,
    logits: Tensor,
    geometry: Geometry,
    recent: int,
) -> Tensor:
    """Rise of the answer's mean negative log-likelihood when one KV head alone sees only sinks and
    recent tokens of the context, `(layers, kv_heads)`; 0 where it falls."""
    shape = (len(geometry.layers), geometry.kv_heads)
    count = shape[0] * shape[1]
    one_each = torch.eye(count, dtype=torch.bool, device=logits.device).view(count, *shape)
    rises = []
    whole = answer_nll(logits, prompt)
    for heads in one_each.split(ABLATED_AT_ONCE):
        lost = ablated(model, cache, prompt.later, Ablation(heads, recent), prompt.answers + 1)
        rises += [answer_nll(each, prompt) - whole for each in lost]
    return torch.stack(rises).view(shape).clamp(min=0)


def answer_nll(logits: Tensor, prompt: Calibration) -> Tensor:
    """Mean negative log-likelihood of a prompt's answer.

    `logits` are those of the last later tokens, `(at least answers + 1, vocab)`.
    """
    return torch.nn.functional.cross_entropy(*_predicted_and_answer(logits, prompt))


def _answers_right(logits: Tensor, prompt: Calibration) -> bool:
    predicted, answer = _predicted_and_answer(logits, prompt)
    return bool((predicted.argmax(dim=-1) == answer).float().mean() > 0.9)


def _predicted_and_answer(logits: Tensor, prompt: Calibration) -> tuple[Tensor, Tensor]:
    """The logits that predict a prompt's answer, `(answers, vocab)`, and its tokens."""
    answer = torch.tensor(prompt.later[-prompt.answers :], device=logits.device)
    return logits[-prompt.answers - 1 : -1].float(), answer


def _induction(model: PreTrainedModel, geometry: Geometry, seed: int) -> Tensor:
    """Induction scores `(layers, query_heads)` on a random sequence that is read twice."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config.get_text_config(decoder=True)
    once = torch.randint(0, config.vocab_size, (PERIOD,), generator=generator).tolist()
    start = config.bos_token_id if isinstance(config.bos_token_id, int) else once[-1]
    cache, _ = probe(model, [start, *once], once)
    return torch.stack(
        [signals.induction(layer.probabilities[0].flatten(0, 1), PERIOD) for layer in cache.probes]
    )


def _mean_curves(curves: dict[str, list]) -> dict[str, dict[str, list]]:
    """Mean over prompts, then over tasks: `{kind: {rule: [layer][KV head][share]}}`."""
    mean = {}
    for kind in ("mass", "output"):
        mean[kind] = {}
        for rule in sorted(RULES):
            by_task = [
                torch.stack(
                    [torch.stack([layer[kind][rule] for layer in prompt]) for prompt in each]
                ).mean(dim=0)
                for each in curves.values()
            ]
            mean[kind][rule] = _rounded(torch.stack(by_task).mean(dim=0))
    return mean


def _rounded(values: Tensor) -> list:
    return [[_round(item) for item in row] for row in values.tolist()]


def _round(value: float | list) -> float | list:
    return [round(each, 6) for each in value] if isinstance(value, list) else round(value, 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--spec", required=True, type=json.loads)
    parser.add_argument("--code", required=True)
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    started = time.time()
    dtype = {**DEFAULTS, **args.spec}["dtype"]
    model, tokenizer = load(args.model_dir, dtype)
    verified = json.loads(args.verified.read_text())
    profile = make_profile(attach(model), tokenizer, read_passages(args.text), args.spec)
    write_json(
        args.out,
        {
            "schema": 1,
            "model": args.model,
            "model_sha256": verified["sha256"],
            "spec": args.spec,
            "code": args.code,
            **profile,
            "provenance": provenance(model, verified["sha256"], started),
        },
    )


if __name__ == "__main__":
    run_cli(main)
