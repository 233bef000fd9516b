"""The calibration of a model: what each head does, what scores its tokens, and what it needs.

Made once for a model and used for every task, length and budget. The calibration prompts share no
seed, needle or passage with any test sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.cache.cache import geometry_of
from kvbudget.calibration import functions as signals
from kvbudget.calibration.answer_curves import answer_curves
from kvbudget.calibration.curves import loss_curves
from kvbudget.calibration.options import OPTIONS
from kvbudget.calibration.probe import probe
from kvbudget.calibration.prompts import Prompt, mixture
from kvbudget.calibration.quality import TOLD
from kvbudget.calibration.records import contexts
from kvbudget.calibration.scorer import Fit, fit
from kvbudget.options import filled
from kvbudget.policies.classify import classify
from kvbudget.policies.rules import RULES

SHARES = [0.0, 0.012, 0.03, 0.06, 0.1, 0.18, 0.3, 0.5, 0.75, 1.0]
PERIOD = 128  # tokens of the random sequence that is read twice


@dataclass(frozen=True)
class Measured:
    """What one calibration prompt tells about the heads.

    Attributes:
        task: which task of the mixture.
        heads: signal → `(layers, query_heads)`; retrieval only where the answer was right.
        loss: kind → scoring rule → `(layers, kv_heads, shares)`.
    """

    task: str
    heads: dict[str, Tensor]
    loss: dict[str, dict[str, Tensor]]


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[str],
    spec: dict,
) -> dict:
    """Measure every head of an attached model on calibration prompts.

    `spec` overrides the defaults of `OPTIONS`.

    Raises:
        UserError: a key or a value that it cannot have.
    """
    spec = filled("calibration", spec, OPTIONS)
    geometry = geometry_of(model)
    keys = ("tasks", "length", "contexts", "seed")
    prompts = mixture(tokenizer, passages, **{key: spec[key] for key in keys})
    measured = [
        measure(model, prompt, spec) for prompt in tqdm(prompts, desc="calibration", unit="prompt")
    ]
    induction = _induction(model, spec["seed"])
    right = sum("retrieval" in each.heads for each in measured)
    if not right:
        tqdm.write("warning: no calibration answer is right, so no head is seen to retrieve")
    heads = {"induction": induction, **mean_signals(measured, induction.shape)}
    heads = {name: _rounded(each) for name, each in heads.items()}
    lengths, count = spec["scorer_lengths"], spec["scorer_contexts"]
    fitted = fit(
        model,
        tokenizer,
        tqdm(
            list(contexts(tokenizer, passages, lengths, range(count), spec["seed"])),
            desc="scorer",
            unit="context",
        ),
        list(contexts(tokenizer, passages, lengths, [count], spec["seed"])),
        SHARES,
        spec["hidden_maps"],
    )
    return {
        "query_heads": geometry.query_heads,
        "kv_heads": geometry.kv_heads,
        "layers": list(geometry.layers),
        "heads": heads,
        "thresholds": spec["thresholds"],
        "classes": classify(heads, geometry.kv_heads, spec["thresholds"]),
        "shares": SHARES,
        "loss": {
            kind: {rule: _rounded(curve) for rule, curve in rules.items()}
            for kind, rules in mean_curves(measured).items()
        },
        "scorer": {features: _told(each) for features, each in fitted.items()},
        "stability": stability(measured, induction, _induction(model, spec["seed"] + 1)),
        "calibration": {"prompts": len(prompts), "answered_right": right, **spec},
    }


def measure(model: PreTrainedModel, prompt: Prompt, spec: dict) -> Measured:
    """All that one prompt tells, on the CPU."""
    cache, logits = probe(model, prompt.context, prompt.later)
    attention = [layer.probabilities[0].flatten(0, 1) for layer in cache.probes]
    heads = {
        name: torch.stack([getattr(signals, name)(each) for each in attention]).cpu()
        for name in ("local", "sink", "previous")
    }
    if prompt.needle and prompt.answered_right(logits):
        ids = prompt.context + prompt.later
        heads["retrieval"] = torch.stack(
            [signals.retrieval(each, ids, prompt.answers, prompt.needle) for each in attention]
        ).cpu()
    layers = [loss_curves(layer, RULES, SHARES, spec["recent"]) for layer in cache.probes]
    loss = {
        kind: {
            rule: torch.stack([layer[kind][rule] for layer in layers]).cpu()
            for rule in sorted(RULES)
        }
        for kind in ("mass", "output")
    }
    loss["answer"] = {
        rule: answer_curves(model, cache, prompt, rule, SHARES, spec["recent"])
        for rule in sorted(spec["answer_rules"])
    }
    return Measured(prompt.task, heads, loss)


def mean_signals(measured: list[Measured], shape: Sequence[int]) -> dict[str, Tensor]:
    """Mean over prompts of each signal, `(layers, query_heads)`; 0 where no prompt has it."""
    return {
        name: torch.stack(found).mean(dim=0) if found else torch.zeros(*shape)
        for name in ("retrieval", "local", "sink", "previous")
        for found in [[each.heads[name] for each in measured if name in each.heads]]
    }


def mean_curves(measured: list[Measured]) -> dict[str, dict[str, Tensor]]:
    """Mean over prompts, then over tasks, of each loss curve. Those of answers are noisy, and made
    to fall to zero: noise aside, more memory does no harm."""
    by_task: dict[str, list[Measured]] = {}
    for each in measured:
        by_task.setdefault(each.task, []).append(each)
    curves = {
        kind: {
            rule: torch.stack(
                [
                    torch.stack([each.loss[kind][rule] for each in prompts]).mean(dim=0)
                    for prompts in by_task.values()
                ]
            ).mean(dim=0)
            for rule in rules
        }
        for kind, rules in measured[0].loss.items()
    }
    curves["answer"] = {rule: _falling(curve) for rule, curve in curves["answer"].items()}
    return curves


def _falling(curves: Tensor) -> Tensor:
    """The nearest curves that fall to zero (isotonic regression)."""
    fitted = [isotonic_regression(curve, increasing=False).x for curve in curves.flatten(0, -2)]
    return torch.tensor(np.array(fitted), dtype=curves.dtype).view_as(curves).clamp(min=0)


def stability(measured: list[Measured], one: Tensor, other: Tensor) -> dict[str, float]:
    """Rank correlation (Spearman) over heads between the prompts of even and odd number.

    `one` and `other` are the induction scores on two random sequences; a loss curve is compared by
    its mean.
    Nothing for a signal that a half has not seen or that is the same in all heads.
    """
    first, second = measured[::2], measured[1::2]
    if not second:
        return {}
    pairs = {"induction": (one, other)}
    halves = mean_signals(first, one.shape), mean_signals(second, one.shape)
    pairs |= {name: (halves[0][name], halves[1][name]) for name in halves[0]}
    curves = mean_curves(first), mean_curves(second)
    pairs |= {
        f"{kind} loss, {rule}": tuple(half[kind][rule].mean(dim=-1) for half in curves)
        for kind, rules in curves[0].items()
        for rule in rules
    }
    return {
        name: round(float(spearmanr(a.flatten(), b.flatten()).statistic), 3)
        for name, (a, b) in pairs.items()
        if a.unique().numel() > 1 and b.unique().numel() > 1
    }


def _induction(model: PreTrainedModel, seed: int) -> Tensor:
    """Induction scores `(layers, query_heads)` on a random sequence that is read twice."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config.get_text_config(decoder=True)
    once = torch.randint(0, config.vocab_size, (PERIOD,), generator=generator).tolist()
    start = config.bos_token_id if isinstance(config.bos_token_id, int) else once[-1]
    cache, _ = probe(model, [start, *once], once)
    return torch.stack(
        [signals.induction(layer.probabilities[0].flatten(0, 1), PERIOD) for layer in cache.probes]
    ).cpu()


def _told(fitted: Fit) -> dict[str, Any]:
    """Maps and their quality as a record holds them."""
    quality = fitted.quality
    return {
        "weights": [_rounded(each.weights) for each in fitted.scorers],
        "bias": _rounded(torch.stack([each.bias for each in fitted.scorers])),
        "spread": _rounded(quality.spread),
        "kept": {
            f"{share:.0%}": _round(k) for share, k in zip(TOLD, quality.kept.tolist(), strict=True)
        },
        "ranks": _rounded(quality.ranks),
    }


def _rounded(values: Tensor) -> list:
    return [[_round(item) for item in row] for row in values.tolist()]


def _round(value: float | list) -> float | list:
    return [round(each, 6) for each in value] if isinstance(value, list) else round(value, 6)
