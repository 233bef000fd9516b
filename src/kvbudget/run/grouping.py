"""How many contexts are asked together. Imports no torch: planning counts with it, too."""

#: Questions that are asked together. Beyond, a step takes as much longer as they are more.
ROWS = 64
#: Bytes of keys and values that contexts asked together may have, were nothing evicted.
BYTES = 2**29
#: The same on a GPU, which has more memory, and waits for Python at every step.
GPU_BYTES = 2**31


def contexts_at_once(questions: int, context_bytes: int, device: str = "cpu") -> int:
    """Contexts of so many questions and bytes each, one at least, on a type of device."""
    room = BYTES if device == "cpu" else GPU_BYTES
    return max(1, min(ROWS // questions, room // context_bytes))
