"""How far a study is, also while it runs."""

import argparse
import sys

from kvbudget.cli import study_argument
from kvbudget.study import published, status
from kvbudget.study.status import State, Watch

#: Seconds from one look at the disk to the next.
_EVERY = 3.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)
    parser.add_argument("--watch", action="store_true", help="go on until the run ends")


def run(args: argparse.Namespace) -> None:
    """Print the state of the study; while it is watched, in a line that changes in a terminal and
    in a line a change elsewhere."""
    study = study_argument.load(args, published.EXTEND)
    published.unpack(study)
    if not args.watch:
        print(status.report(study))
        return
    watch = Watch(study)
    show = _live if sys.stdout.isatty() else _plain
    show(watch, _EVERY)
    print(watch.look().report())


def _plain(watch: Watch, every: float) -> None:
    told = None
    for state in watch.changes(every):
        if (line := state.line()) != told:
            print(line, flush=True)
            told = line


def _live(watch: Watch, every: float) -> None:
    from rich.live import Live  # for people at a terminal only

    with Live(transient=True, auto_refresh=False) as live:
        for state in watch.changes(every):
            live.update(_drawn(state), refresh=True)


def _drawn(state: State) -> object:
    """A bar of all contexts, and the line."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    finished, contexts = state.contexts
    drawn = Table.grid()
    drawn.add_row(ProgressBar(total=contexts, completed=finished, width=60))
    drawn.add_row(Text(state.line()))
    return drawn
