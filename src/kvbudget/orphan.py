"""Cells that outlive their run.

When Snakemake is killed, its cells live on. The next run takes the record that such a cell writes
for the output of a job that was cut off, and deletes it. So an orphan writes no record, and leaves
what it has finished to its successor.
"""

import psutil

from kvbudget.errors import UserError


def check_run(pid: int | None) -> None:
    """Raise `UserError` if the Snakemake of this process id is gone; None is a cell without one."""
    if pid is None:
        return
    try:
        alive = psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        alive = False
    if not alive:
        raise UserError(
            "the run that started this cell was killed; what is finished is kept, start it again"
        )
