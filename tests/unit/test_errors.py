"""What a command line shows of errors that a user can act on."""

import errno
import shlex
import subprocess
import sys

import pytest

from kvbudget.errors import UserError, run_cli


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("length 5 is too short; use 200"), "length 5 is too short; use 200"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; free some space and run it again: what is finished stays",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "results/x.json"),
            "Read-only file system: results/x.json; see that you may write there and run it "
            "again: what is finished stays",
        ),
    ],
)
def test_one_line_and_status_2(capsys, error, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_what_no_user_can_mend_is_shown_whole():
    def main():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        run_cli(main)


def test_a_reader_who_has_had_enough_is_no_error():
    lines = "from kvbudget.errors import run_cli; run_cli(lambda: print('line\\n' * 100_000))"
    piped = f'{shlex.quote(sys.executable)} -c "{lines}" | head -n 1'
    done = subprocess.run(piped, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("line\n", "")
