"""What a calibration can be asked for. Imports no torch.

The defaults are those of `kvbudget calibrate`, of studies that name no others, and of the
calibrations that come with the package.
"""

from collections.abc import Iterable

from kvbudget.options import Option, choice, count
from kvbudget.policies.registry import HIDDEN_MAPS

TASKS = ("needles", "recall", "reading", "tracking", "words")
RULES = ("attention", "window", "diversity", "recency")


def _some(default: list[str], about: str, values: Iterable[str], least: int) -> Option:
    items = {"enum": list(values)}
    return Option(
        default, about, {"type": "array", "minItems": least, "uniqueItems": True, "items": items}
    )


_SHARE = {"type": "number", "minimum": 0, "maximum": 1}

OPTIONS: dict[str, Option] = {
    "dtype": choice("float32", "Type of weights.", ("bfloat16", "float16", "float32")),
    "seed": Option(1, "All prompts follow from it.", {"type": "integer"}),
    "length": count(500, "Tokens of a calibration prompt.", least=200),
    "contexts": count(2, "Prompts of each task."),
    "tasks": _some(["needles", "recall", "reading"], "The mixture of prompts.", TASKS, 1),
    "answer_rules": _some(
        [],
        "Scoring rules under which it is measured what the answer loses by each head, for "
        "allocation: curves. It takes most of the time.",
        RULES,
        0,
    ),
    "scorer_lengths": Option(
        [1000, 2000],
        "Tokens of the contexts that are repeated to fit the scorer.",
        {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"type": "integer", "minimum": 200},
        },
    ),
    "hidden_maps": _some(
        [],
        "Maps from hidden states that are fitted beside those from keys and values: to KVzip's "
        "scores, for features: hidden, and to KVzip+'s, for policy kvzap, at twice the time.",
        HIDDEN_MAPS,
        0,
    ),
    "scorer_contexts": count(3, "Contexts of each of these lengths; one more is held out."),
    "recent": count(8, "Last tokens that a head keeps in loss curves."),
    "thresholds": Option(
        {"retrieval": 0.1, "induction": 0.3},
        "Scores from which a head counts as one of its class.",
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["retrieval", "induction"],
            "properties": {"retrieval": _SHARE, "induction": _SHARE},
        },
    ),
}

DEFAULTS = {name: option.default for name, option in OPTIONS.items()}
