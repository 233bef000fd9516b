"""What all tests share. Environment first: torch reads it once, when it is imported."""

import os
from pathlib import Path

# Two cores are often all there is, and tiny models only lose by more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KVBUDGET_THREADS", "1")
# Tests that download do so through pip; nothing may reach for a model hub by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
# Without a GPU its kernels are interpreted, which Triton has to know before it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
