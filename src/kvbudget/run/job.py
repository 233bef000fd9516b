"""What every job is given that runs a model on a text: `kvbudget.cli.of_model` takes the same."""

from dataclasses import dataclass
from pathlib import Path

WARM_UP = 64  # tokens read before anything is timed


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job is made from, and where its result goes.

    Attributes:
        spec: all that is asked for.
        model_identity: of the model that is meant.
        model_dir: where the model lies.
        verified: what its check has found.
        text: the haystack.
        out: the file or folder to write.
    """

    spec: dict
    model_identity: str
    model_dir: Path
    verified: Path
    text: Path
    out: Path


@dataclass(frozen=True, kw_only=True)
class Cell(Job):
    """What a cell is measured from; its spec says model, dtype, seed, split, haystack, task,
    length, method, budget and samples.

    Attributes:
        code: digest of the code that it runs.
        identity: digest of all that the result depends on: spec, code, model, text, calibration.
        calibration: of the model's heads, for a method that uses one.
        prefills: folder of contexts that were read before; None reads them all.
        own_contexts: contexts, of the first, that are read all the same; 1 or more.
    """

    code: str
    identity: str
    calibration: Path | None = None
    prefills: Path | None = None
    own_contexts: int = 1
