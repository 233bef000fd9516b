"""How rows of tables say what the corrected test says: a mark beside the value."""

from kvbudget.paper.latex import Latex
from kvbudget.paper.source import Source

WORSE, BETTER = Latex(r"\(^-\)"), Latex(r"\(^+\)")
#: What a mark means, for captions; `{}` is the title of ours.
MEANING = (
    r"A value with \(^-\) is clearly worse than that of {}, one with \(^+\) clearly better: by a "
    r"paired permutation test after Holm's correction."
)


def marks(src: Source) -> dict[tuple, Latex]:
    """Marks by (model, task, length, method, budget, metric): how a value compares with ours.

    Where several experiments hold a pair, worse than ours is what is so in each of their families,
    and better what is so in any. The full cache has no budget, so it has no mark.
    """
    found: dict[tuple, set[str]] = {}
    for row in src.comparisons.to_dict("records"):
        if row["kind"] == "ablation":
            method, verdict = row["method"], row["verdict"]
        elif row["kind"] == "baseline" and row["method"] == src.study.ours:
            method, verdict = row["reference"], _TURNED[row["verdict"]]
        else:
            continue
        place = (row["model"], row["task"], row["length"], method, row["budget"], row["metric"])
        found.setdefault(place, set()).add(verdict)
    return {place: mark for place, verdicts in found.items() if (mark := _mark(verdicts))}


#: A verdict on ours beside a method, as one on the method beside ours.
_TURNED = {"better": "worse", "worse": "better", "unclear": "unclear"}


def _mark(verdicts: set[str]) -> Latex | None:
    if "better" in verdicts:
        return BETTER
    return WORSE if verdicts == {"worse"} else None
