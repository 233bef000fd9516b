"""How answers are scored."""

from collections.abc import Sequence


def string_match_all(output: str, references: Sequence[str]) -> float:
    """Share of `references` found in `output`, case ignored: RULER's score of all tasks here."""
    found = sum(reference.lower() in output.lower() for reference in references)
    return found / len(references)
