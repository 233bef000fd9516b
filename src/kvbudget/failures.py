"""What failed in a run, as a page to read: `results/{study}/failures.md`.

Snakemake's log names the jobs that failed, their outputs and logs; this adds the end of each log
and the command that runs the job again by itself.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvbudget.errors import run_cli

_LOG_LINES = 15


@dataclass(frozen=True)
class Failure:
    """A job that failed: its rule, the first file it should have written, and its log."""

    rule: str
    output: str
    log: Path | None


def find(snakemake_log: str) -> list[Failure]:
    """The failed jobs in the text of a log of Snakemake, each once, in order."""
    failures: dict[str, Failure] = {}
    for rule, fields in _blocks(snakemake_log):
        output = fields.get("output", rule).split(", ")[0]
        log = fields.get("log")
        # "path (check log file(s) for error details)"
        path = Path(log.split(" (check log")[0].split(", ")[0]) if log else None
        failures[output] = Failure(rule, output, path)
    return list(failures.values())


def report(failures: list[Failure], rerun: str) -> str:
    """The page, in Markdown. `rerun` is the command that an output's name completes."""
    lines = [f"# {len(failures)} failed", ""]
    for failure in failures:
        lines += [
            f"## {failure.output}",
            "",
            f"Rule `{failure.rule}`. Run it again alone:",
            "",
            f"    {rerun} {failure.output}",
            "",
        ]
        tail = _tail(failure.log)
        if tail:
            lines += [f"The end of `{failure.log}`:", "", *(f"    {line}" for line in tail), ""]
        else:
            lines += ["It left no log.", ""]
    return "\n".join(lines)


def _blocks(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """`Error in rule NAME:` with the indented `key: value` lines below it."""
    for match in re.finditer(r"^Error in rule (\w+).*:\n((?:[ \t]+.*\n?)*)", text, re.MULTILINE):
        fields = re.findall(r"^ {4}(\w+): (.*)$", match[2], re.MULTILINE)
        yield match[1], dict(fields)


def _tail(log: Path | None) -> list[str]:
    if log is None or not log.is_file():
        return []
    # A progress bar rewrites its line with \r: its last state is what a reader wants.
    lines = log.read_bytes().decode("utf-8", "replace").split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    return [line for line in shown if line][-_LOG_LINES:]


def main() -> None:
    parser = argparse.ArgumentParser(description="List the failed jobs of a run.")
    parser.add_argument("--snakemake-log", required=True, type=Path)
    parser.add_argument("--rerun", required=True, help="command that an output's name completes")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    text = args.snakemake_log.read_text(encoding="utf-8", errors="replace")
    failures = find(text)
    if not failures:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(report(failures, args.rerun), encoding="utf-8")
    print(f"{len(failures)} failed; what, why and how to run it again: {args.out}")


if __name__ == "__main__":
    run_cli(main)
