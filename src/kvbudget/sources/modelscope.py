"""Repositories of ModelScope, which mirrors what the Hugging Face hub has (optional package).

Its client keeps whole files in its own cache (`MODELSCOPE_CACHE`), checks their hashes, tries again
by itself and sends `MODELSCOPE_API_TOKEN`.
"""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.constants import is_offline_mode

from kvbudget.errors import UserError


def snapshot(repo: str, revision: str, patterns: Sequence[str]) -> Path:
    """A directory of the client's cache with the files of `repo` that match `patterns`.

    Only files at the top of the repository count. With `HF_HUB_OFFLINE=1` nothing is asked of the
    network here either.

    Raises:
        UserError: with the remedy; what has arrived by then is kept for the next run.
    """
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError(
            "source modelscope needs a package: .venv/bin/pip install -e '.[modelscope]'"
        ) from None

    try:
        found = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],
            local_files_only=is_offline_mode(),
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        remedy = (
            "unset HF_HUB_OFFLINE, or copy its cache (MODELSCOPE_CACHE) from a machine that has it"
            if is_offline_mode()
            else "check the network, `repo` and `revision` of the model and, if it is private, set"
            " MODELSCOPE_API_TOKEN; run it again, whole files are kept"
        )
        raise UserError(
            f"{repo} at {revision} could not be had from ModelScope ({reason}); {remedy}"
        ) from error
    return Path(found)
