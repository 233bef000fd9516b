"""How many contexts are asked together. Imports no torch: planning counts with it, too."""

#: Questions that are asked together. Beyond, a step takes as much longer as they are more.
ROWS = 64
#: Bytes of keys and values that contexts asked together may have, were nothing evicted.
BYTES = 2**29


def contexts_at_once(questions: int, context_bytes: int) -> int:
    """Contexts of so many questions and bytes each, one at least."""
    return max(1, min(ROWS // questions, BYTES // context_bytes))
