"""A small made-up study for tests of analysis and paper. Its numbers mean nothing."""

import itertools
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvbudget.calibration.options import DEFAULTS
from kvbudget.study.identity import digest
from kvbudget.study.plan import DEFAULT, OURS, Calibration, Planned, Study

KEPT = {"10%": 0.81, "20%": 0.86, "40%": 0.93}  # of the scorer
LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM = 6, 6, 2, 16
METHODS = {
    "full": {"policy": "full", "title": "Baseline (full cache, GPE)"},
    "h2o": {"policy": "h2o", "title": "H2O"},
    "streaming-llm": {"policy": "streaming-llm", "title": "StreamingLLM"},
    "head-aware": {"policy": "head-aware", "title": "Head-Aware + groups"},
    "uniform": {"policy": "head-aware", "title": "uniform budgets", "allocation": "uniform"},
    "independent": {"policy": "head-aware", "title": "without groups", "safeguard": 0.5},
}
MAIN = ["full", "h2o", "streaming-llm", "head-aware"]
SKILL = {"full": 0.9, "head-aware": 0.7, "uniform": 0.4, "independent": 0.6}


def config(**changes: object) -> dict:
    """The expanded config of a study like the default one, smaller."""
    base = {
        "study": "synthetic",
        "seed": 1,
        "split": "test",
        "dtype": "bfloat16",
        "samples": {"contexts": 12, "questions": 2},
        "families": ["experiment", "metric", "reference"],
        "models": {
            "tiny_a": {"source": "pypi", "packages": ["some-package==0.1"], "title": "Tiny-A"}
        },
        "tasks": {
            "niah_single": {"kind": "niah", "needles": 1},
            "perplexity": {"kind": "perplexity"},
        },
        "methods": METHODS,
        "experiments": [
            {
                "name": "lengths",
                "models": ["tiny_a"],
                "tasks": ["niah_single", "perplexity"],
                "lengths": [500, 1000, 2000],
                "methods": MAIN,
                "budgets": ["20%"],
            },
            {
                "name": "budgets",
                "models": ["tiny_a"],
                "tasks": ["niah_single", "perplexity"],
                "lengths": [1000],
                "methods": MAIN,
                "budgets": ["10%", "20%", "40%", 256],
            },
            {
                "name": "ablation",
                "models": ["tiny_a"],
                "tasks": ["niah_single"],
                "lengths": [1000],
                "methods": ["full", "head-aware", "uniform", "independent"],
                "budgets": ["20%"],
            },
        ],
    }
    return {**base, **changes}


def make(root: Path, settings: dict | None = None) -> Path:
    """Write the plan, records, calibrations and verified.json under `root/results`.

    Returns:
        The path of the plan.
    """
    settings = settings or config()
    study = _expand(settings)
    for cell in study.cells:
        _write(root / cell.path, record(cell))
    for each in study.calibrations:
        _write(root / each.path, calibration(each.model))
    for key in settings["models"]:
        verified = {"model": key, "sha256": "a" * 64, "layers": LAYERS, "context": 8192}
        verified |= {"kv_heads": KV_HEADS, "query_heads": QUERY_HEADS, "head_dim": HEAD_DIM}
        _write(root / f"results/models/{key}.verified.json", verified)
    file = root / study.directory / "study-0.json"
    _write(file, study.as_json())
    return file


_NOT_IN_SPECS = ("title", "calibration_seeds")
TEXT = "results/text/kjv-0.txt"
CALIBRATION = {"haystack": "kjv", **DEFAULTS}


def _expand(settings: dict) -> Study:
    calibrations = {
        key: Calibration(key, DEFAULT, CALIBRATION, "c0de", digest(key), TEXT)
        for key in settings["models"]
    }
    cells: dict[str, Planned] = {}
    for experiment in settings["experiments"]:
        axes = (experiment[name] for name in ("models", "tasks", "lengths", "methods"))
        for model, task, length, method in itertools.product(*axes):
            entry = settings["methods"][method]
            budgets = [None] if entry["policy"] == "full" else experiment["budgets"]
            seeds = entry.get("calibration_seeds", [None])
            for budget, seed in itertools.product(budgets, seeds):
                spec = _spec(settings, model, task, length, method, budget)
                if seed is not None:
                    spec["calibration"] = {"seed": seed}
                ours = spec["method"]["policy"] == OURS
                code = f"{spec['method']['policy']}-{spec['task']['kind']}" * 4
                known = calibrations[model].path if ours else None
                cell = Planned(spec, code, digest(spec), TEXT, known, (experiment["name"],))
                before = cells[cell.path].experiments if cell.path in cells else ()
                cells[cell.path] = replace(cell, experiments=before + cell.experiments)
    used = {cell.calibration for cell in cells.values()}
    return Study(
        settings["study"],
        settings,
        tuple(cells.values()),
        tuple(each for each in calibrations.values() if each.path in used),
    )


def _spec(
    settings: dict, model: str, task: str, length: int, method: str, budget: str | int | None
) -> dict:
    entry = {k: v for k, v in settings["methods"][method].items() if k not in _NOT_IN_SPECS}
    return {
        "model": model,
        "dtype": settings["dtype"],
        "seed": settings["seed"],
        "split": settings["split"],
        "haystack": "kjv",
        "task": {"name": task, **settings["tasks"][task]},
        "length": length,
        "method": {"name": method, **entry},
        "budget": budget,
        "samples": settings["samples"],
    }


#: A question and its answer.
ON_TOP = {
    "cache_tokens_on_top": 45,
    "cache_bytes_on_top": 45 * 2 * LAYERS * KV_HEADS * HEAD_DIM * 2,
}


def record(cell: Planned) -> dict:
    """A plausible record: quality falls with the kept share, cost grows with it."""
    spec = cell.spec
    rng = np.random.default_rng(hash_of(cell.path))
    length, budget, method = spec["length"], spec["budget"], spec["method"]["name"]
    share = 1.0 if budget is None else _tokens(budget, length) / length
    skill = SKILL.get(method, 0.2) * (share**0.2)
    perplexity = spec["task"]["kind"] == "perplexity"
    streaming = spec["task"]["kind"] == "streaming"
    # Tasks that differ in when they answer read the same texts.
    source = f"{spec['task']['kind' if streaming else 'name']}/L{length}"
    samples = []
    for c in range(spec["samples"]["contexts"]):
        for q in range(1 if perplexity else spec["samples"]["questions"]):
            score = float(rng.random() < skill)
            needles = spec["task"].get("needles", 1)
            any_needle = score == 1 or rng.random() < skill
            samples.append(
                {
                    "id": f"{source}/{c}/{q}",
                    "context_id": f"{source}/{c}",
                    "prompt_tokens": length // 2 if perplexity else length,
                    "budget_tokens": None if budget is None else round(share * length),
                    "score": None if perplexity else score,
                    "nll": float(
                        3 + rng.random() - skill if perplexity else rng.random() + 1 - skill
                    ),
                    "output": "1234567",
                    "reference": ["1234567"],
                    "any": any_needle if needles > 1 else None,
                    "choice": max(score, float(rng.random() < 0.5)) if needles > 1 else None,
                    "choices": needles if needles > 1 else None,
                }
            )
    if streaming:
        samples = [sample | _translation(rng, share) for sample in samples]
    token_bytes = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
    held = min(1.0, share * 16 / spec["method"].get("bits", 16))
    planned = round(share * length) * token_bytes
    out = {
        "schema": 1,
        "spec": spec,
        "code": cell.code,
        "identity": cell.identity,
        "samples": samples,
        "memory": {
            "cache_bytes_planned": planned,
            "cache_bytes_allocated": round(planned * 1.01),
            "cache_bytes_full": length * token_bytes,
            "cache_bytes_sliding": 0,
            **({"cache_bytes_target": 2**21} if streaming else {}),
            **({} if perplexity or streaming else ON_TOP),
            "peak_rss_bytes": 9 * 10**8 + 4 * planned,
            "peak_cuda_bytes": None,
        },
        "timing": {
            "prefill_s": length / 600 * (1.2 if budget else 1),
            "decode_ms_per_token": None if perplexity or streaming else 20 + share * length / 50,
            "load_s": 1.0,
        },
        "provenance": {
            "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
            "model_sha256": "a" * 64,
            "device": "cpu",
            "cpu": "Some CPU",
            "threads": 2,
            "kernels": "none",
            "at_once": 1,
            "dtype": spec["dtype"],
            "git_commit": "0123456789abcdef",
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:00+00:00",
        },
    }
    slots = np.ones((LAYERS, KV_HEADS))
    if spec["method"]["policy"] == "head-aware" and held < 1:
        slots = rng.gamma(1.5, size=slots.shape)
    slots = slots / slots.mean() * held * length
    out["allocation"] = {"layers": list(range(LAYERS)), "slots": slots.tolist()}
    return out


def _translation(rng: np.random.Generator, share: float) -> dict:
    """What a streamed translation has beside other samples; the more is kept, the more agrees."""
    return {
        "score": None,
        "output": "Au commencement Dieu vit la terre",
        "reference": ["Au commencement, Dieu créa les cieux et la terre."],
        "predictions": np.where(rng.random(50) < share, 7, 8).tolist(),
        "al": 3.0 + float(rng.random()),
        "laal": 4.0 + float(rng.random()),
    }


def _tokens(budget: str | int, length: int) -> float:
    return float(budget.rstrip("%")) / 100 * length if isinstance(budget, str) else budget


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    return zlib.crc32(text.encode())


def calibration(model: str) -> dict:
    """A plausible calibration: random scores, loss curves that fall to zero."""
    rng = np.random.default_rng(hash_of(model))
    names = ("retrieval", "induction", "local", "sink", "previous")
    shares = [0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0]
    classes = rng.choice(["retrieval", "induction", "local"], size=(LAYERS, KV_HEADS))

    def curves() -> list:
        steep = rng.uniform(2, 20, size=(LAYERS, KV_HEADS, 1))
        falling = np.exp(-steep * np.array(shares)) * (1 - np.array(shares))
        return falling.tolist()

    return {
        "schema": 1,
        "model": model,
        "model_sha256": "a" * 64,
        "spec": {},
        "code": "calibration",
        "query_heads": QUERY_HEADS,
        "kv_heads": KV_HEADS,
        "layers": list(range(LAYERS)),
        "heads": {n: rng.beta(0.5, 2, size=(LAYERS, QUERY_HEADS)).tolist() for n in names},
        "classes": classes.tolist(),
        "shares": shares,
        "loss": {
            "answer": {"diversity": curves()},
            **{
                measure: {rule: curves() for rule in ("attention", "diversity", "recency")}
                for measure in ("mass", "output")
            },
        },
        "scorer": {
            features: {
                "kept": {share: round(kept - lost, 2) for share, kept in KEPT.items()},
                "ranks": (rng.uniform(0.5, 0.7, size=(LAYERS, KV_HEADS)) - lost).tolist(),
            }
            for features, lost in {"group": 0.0, "own": 0.05}.items()
        },
        "stability": {"induction": 0.98, "answer loss, diversity": 0.9},
        "calibration": {"n": 4},
        "provenance": {},
    }


def _write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
