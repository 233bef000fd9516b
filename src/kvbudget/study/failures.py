"""What failed in a run, as a page to read: `results/{study}/failures.md`.

Snakemake's log names the jobs that failed, their outputs and logs; this adds the likely cause, the
end of each log, and the command that runs the job again by itself.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOG_LINES = 15
_FULL_BYTES = 1 << 20

#: What the end of a log says of the cause, the first that fits: pattern, cause, remedy.
_CAUSES = (
    (
        r"out of (device |host )?memory|OutOfMemory|MemoryError|oom.kill|"
        r"(not enough|can.?not allocate|can't allocate) memory",
        "out of memory",
        "use a shorter length, a larger device, or fewer jobs at a time",
    ),
    (
        r"No space left|Disk quota exceeded|disk of .* is full",
        "no space left on the disk",
        "free some; what is finished stays",
    ),
    (
        r"Read-only file system|Permission denied",
        "a place that cannot be written",
        "make it writable for you",
    ),
    (
        r"\bgated;|GatedRepo|is restricted|\b40[13] Client",
        "a gated model",
        "accept its licence on the hub and set HF_TOKEN",
    ),
    (
        r"check the network|cannot be reached|connection broke|ConnectionError|ConnectError|"
        r"Max retries|name resolution|Network is unreachable",
        "no network",
        "check it and the proxy; on a cluster, run this where there is one",
    ),
    (
        r"\b(is|are|to) (nan|-?inf)\b|not finite|model overflows|not JSON compliant",
        "NaN: the model overflows in this dtype",
        "use float32, or bfloat16 in place of float16",
    ),
)
_SILENT = (
    "killed, as its log ends without an error: by the system or the scheduler for memory or time, "
    "or by hand (`dmesg`, `sacct`); with more of either it goes on where it stopped"
)


@dataclass(frozen=True)
class Failure:
    """A job that failed: its rule, the first file it should have written, and its log."""

    rule: str
    output: str
    log: Path | None


def find(snakemake_log: str) -> list[Failure]:
    """The failed jobs in the text of a log of Snakemake, each once, in order.

    A job that failed and then came to a good end at another attempt (`--retries`) is none.
    """
    failures: dict[str, Failure] = {}
    for rule, fields, rest in _blocks(snakemake_log):
        if re.search(rf"^Finished jobid: {fields.get('jobid')} ", rest, re.MULTILINE):
            continue
        output = fields.get("output", rule).split(", ")[0]
        log = fields.get("log")
        # "path (check log file(s) for error details)"
        path = Path(log.split(" (check log")[0].split(", ")[0]) if log else None
        failures[output] = Failure(rule, output, path)
    return list(failures.values())


def cause(tail: list[str], free_bytes: int) -> str:
    """The likely cause of a failure, from the last lines of its log and the space on its disk."""
    if free_bytes < _FULL_BYTES:  # then the log, on the same disk, may have lost its end
        tail = [*tail, "No space left"]
    last = next((line for line in reversed(tail) if _is_error(line)), None)
    if last is None:
        return _SILENT
    for pattern, what, remedy in _CAUSES:
        if re.search(pattern, last, re.IGNORECASE):
            return f"{what}; {remedy}"
    return last


def report(failures: list[Failure], rerun: str, free_bytes: int) -> str:
    """The page, in Markdown. `rerun` is a command with OUTPUT for an output's name."""
    lines = [f"# {len(failures)} failed", ""]
    for failure in failures:
        tail = _tail(failure.log)
        lines += [
            f"## {failure.output}",
            "",
            f"Likely cause: {cause(tail, free_bytes).rstrip('.')}.",
            "",
            f"Rule `{failure.rule}`. Run it again alone:",
            "",
            f"    {rerun.replace('OUTPUT', failure.output)}",
            "",
        ]
        if tail:
            lines += [f"The end of `{failure.log}`:", "", *(f"    {line}" for line in tail), ""]
        else:
            lines += ["It left no log.", ""]
    return "\n".join(lines)


def _blocks(text: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """`Error in rule NAME:`, the indented `key: value` lines below it, and the rest of the log."""
    for match in re.finditer(r"^Error in rule (\w+).*:\n((?:[ \t]+.*\n?)*)", text, re.MULTILINE):
        fields = re.findall(r"^ {4}(\w+): (.*)$", match[2], re.MULTILINE)
        yield match[1], dict(fields), text[match.end() :]


def _is_error(line: str) -> bool:
    """Whether a line tells of an error: ours, another program's, or the last of a traceback."""
    return bool(
        re.match(r"(\S+: )*error\b|[\w.]+(Error|Exception|Exit)\b|No space left", line, re.I)
    )


def _tail(log: Path | None) -> list[str]:
    if log is None or not log.is_file():
        return []
    # A progress bar rewrites its line with \r: its last state is what a reader wants.
    lines = log.read_bytes().decode("utf-8", "replace").split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    return [line for line in shown if line][-_LOG_LINES:]


def write(snakemake_log: Path, rerun: str, out: Path) -> Iterator[str]:
    """Write the page of a run's failures, where it has any; yields what to tell, a line each.

    Args:
        snakemake_log: of the run.
        rerun: command with OUTPUT for an output's name.
        out: the page.
    """
    failures = find(snakemake_log.read_text(encoding="utf-8", errors="replace"))
    if not failures:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    for failure in failures:
        yield f"failed: {failure.output}: {cause(_tail(failure.log), free)}"
    out.write_text(report(failures, rerun, free), encoding="utf-8")
    yield f"{len(failures)} failed; what, why and how to run it again: {out}"
