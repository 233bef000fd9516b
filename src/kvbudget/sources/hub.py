"""Repositories of the Hugging Face hub, or of a mirror that speaks its protocol (`HF_ENDPOINT`).

The client (huggingface_hub) does the work: it keeps whole files in its own cache (`HF_HOME`), goes
on inside a file whose connection broke, sends `HF_TOKEN`, waits where the hub says it is busy, and
with `HF_HUB_OFFLINE=1` takes what the cache holds. What is added here is one clear error.
"""

import errno
import re
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kvbudget.errors import UserError

#: Seconds before each further attempt at what the client itself does not try again.
WAITS = (2, 8, 30)


def snapshot(repo: str, revision: str, patterns: Sequence[str]) -> Path:
    """A directory of the client's cache with the files of `repo` that match `patterns`.

    Only files at the top of the repository count. `revision` is a full commit.

    Raises:
        UserError: with the remedy; what has arrived by then is kept for the next run.
    """
    waits = iter(WAITS)
    while True:
        try:
            found = snapshot_download(
                repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
            return Path(found)
        except Exception as error:
            wait = next(waits, None) if _passes(error) else None
            if wait is None:
                raise UserError(f"{repo} at {revision}: {_explain(repo, error)}") from error
        time.sleep(wait)


def _passes(error: Exception) -> bool:
    """Whether to try again what the client does not: a file whose sending failed."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.ReadError) or "Consistency check failed" in str(error)


def _explain(repo: str, error: Exception) -> str:
    """What is wrong and what to do about it, in one line without credentials."""
    # Where the cache could not stand in for the hub, the reason is the error behind this one.
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    endpoint = _without_password(constants.ENDPOINT)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            f"offline (HF_HUB_OFFLINE), and {constants.HF_HUB_CACHE} does not hold all of it; unset"
            " HF_HUB_OFFLINE, or copy it there from a machine that has it"
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"gated; accept its licence at {endpoint}/{repo}, then set HF_TOKEN to a token of the"
            " account that did"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{endpoint} has no such revision; correct `revision` of the model"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{endpoint} has no such repository, or it is private; correct `repo` of the model, or"
            " set HF_TOKEN to a token that may read it"
        )
    if status == 401:
        return f"{endpoint} does not accept the token; set HF_TOKEN to a valid one, or unset it"
    if status == 429:
        return f"{endpoint} asks to slow down (429); wait some minutes, or set HF_TOKEN for more"
    if status is not None and status >= 500:
        return f"{endpoint} fails ({status}); try again later, or name a mirror with HF_ENDPOINT"
    if isinstance(error, httpx2.TimeoutException):
        return (
            f"{endpoint} is too slow; run it again, it goes on where it stopped, with more"
            " patience: HF_HUB_DOWNLOAD_TIMEOUT=60 HF_HUB_ETAG_TIMEOUT=60 (seconds)"
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return (
            f"{endpoint} cannot be reached ({_first_line(error)}); check the network and the proxy,"
            " name a mirror with HF_ENDPOINT, or use source: modelscope"
        )
    if isinstance(error, httpx2.TransportError) or "Consistency check failed" in str(error):
        return "the connection broke again and again; run it again, it goes on where it stopped"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME elsewhere"
    return f"could not be had from {endpoint} ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _without_password(lines[0])


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://", text)
