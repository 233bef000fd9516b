"""The command line: `kvbudget COMMAND`. One module a command, imported when it is asked for.

A module has `arguments(parser)`, which declares what the command takes, and `run(args)`; its
docstring is the command's description. Errors that a user can act on are one line.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from kvbudget.errors import UserError, run_cli
from kvbudget.options import suggest
from kvbudget.run.warm import PLACE, hand_over

#: Command → what it does. Those of the first table are for people, of the second for the workflow.
COMMANDS = {
    "plan": "check a study and say what it will cost",
    "status": "how far a study is",
    "site": "one page of a finished study's results",
    "shade": "which tokens of a context each method keeps, for that page",
    "verify": "name what of a finished study is stale, and why",
    "attest": "compare published records of earlier code with what today's gives",
    "bundle": "archive the finished cells of a study",
    "unbundle": "put someone's finished cells into results/",
    "calibrate": "fit Head-Aware to a model",
    "ship": "put a calibration into the package",
    "check": "does a model work with our caches?",
    "bench": "time and size of the caches, as ratios",
    "lock": "record the file hashes of a model",
}
JOBS = {
    "fetch-model": "get a model onto disk",
    "verify-model": "check that a model is the one that was meant, and works",
    "text": "make a haystack",
    "environment": "what this machine is",
    "expand": "write the expanded plan of a study",
    "calibration": "make one calibration",
    "prefill": "read the contexts of a place once for all its cells",
    "cell": "measure one cell",
    "lease": "run a command on a GPU of its own",
    "warm": "keep the libraries of measurements loaded, and fork for each",
    "aggregate": "from records to CSV files",
    "table": "one table of the paper",
    "figure": "one figure of the paper",
    "numbers": "the numbers in the paper's prose",
    "check-paper": "refuse a paper that does not follow from its data",
    "failures": "list the failed jobs of a run",
    "schema": "the schema of the configuration, from what methods and tasks declare",
}
#: Jobs that run in a fork of a process that has imported what they need, where there is one.
WARM = ("calibration", "prefill", "cell")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. A `UserError` is one line on stderr and exit status 2."""
    # Before torch is imported: by default its threads spin while they wait for each other, and one
    # other busy process on the machine then makes a run several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if argv is None else argv)
    run_cli(lambda: _run(words))


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return
    command, *rest = words
    if command not in COMMANDS | JOBS:
        raise UserError(
            f"there is no command {command!r}{suggest(command, COMMANDS | JOBS)}; "
            "kvbudget --help lists them"
        )
    if command in WARM and PLACE in os.environ:
        hand_over(words)
    module = importlib.import_module(f"{__name__}.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"kvbudget {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    module.run(parser.parse_args(rest))


def _help() -> str:
    lines = ["usage: kvbudget COMMAND [arguments]; kvbudget COMMAND --help says what it takes", ""]
    lines += [f"  {name:14}{what}" for name, what in COMMANDS.items()]
    lines += ["", "jobs of the workflow:", ""]
    lines += [f"  {name:14}{what}" for name, what in JOBS.items()]
    return "\n".join(lines)
