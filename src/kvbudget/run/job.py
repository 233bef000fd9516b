"""What every job is given that runs a model on a text: `kvbudget.cli.of_model` takes the same."""

from dataclasses import dataclass
from pathlib import Path


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
