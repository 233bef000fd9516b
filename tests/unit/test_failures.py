"""failures.md says what failed, why, and how to run it again."""

import pytest

from kvbudget.study.failures import cause, find, report

ROOMY = 1 << 30

LOG = """\
[Tue Nov 24 06:38:39 2026]
Error in rule cell:
    message: None
    jobid: 6
    input: results/models/m.verified.json
    output: results/s/cells/m/t/L400/h2o/B20p.json
    log: {log} (check log file(s) for error details)
    shell:
        python -m kvbudget.run.cell --spec '{{}}'
        (command exited with non-zero exit code)
Logfile {log}:
error: no
Error in rule pdf:
    jobid: 1
    output: paper/main.pdf
    log: results/nowhere.log (check log file(s) for error details)
Error in rule cell:
    jobid: 6
    output: results/s/cells/m/t/L400/h2o/B20p.json
    log: {log} (check log file(s) for error details)
"""


def test_report_names_cell_log_and_command(tmp_path):
    log = tmp_path / "cell.log"
    log.write_bytes(b"reading\n 10%|#\r 50%|##\r100%|####\n\nerror: out of memory\n")
    failures = find(LOG.format(log=log))
    assert [failure.output for failure in failures] == [
        "results/s/cells/m/t/L400/h2o/B20p.json",
        "paper/main.pdf",
    ]
    page = report(failures, "snakemake --configfile x.yaml --cores 1 OUTPUT", ROOMY)
    assert page.startswith("# 2 failed\n")
    command = "snakemake --configfile x.yaml --cores 1 results/s/cells/m/t/L400/h2o/B20p.json"
    assert f"    {command}\n" in page
    assert "    100%|####\n    error: out of memory\n" in page
    assert "10%|#\r" not in page
    assert "Likely cause: out of memory; use a shorter length" in page
    assert "It left no log." in page
    assert "Likely cause: killed, as its log ends without an error" in page


def test_a_log_without_errors_has_no_failures():
    assert find("Finished jobid: 3 (Rule: plan)\n1 of 2 steps (50%) done\n") == []


def test_a_job_that_succeeded_at_a_later_attempt_did_not_fail(tmp_path):
    failures = find(LOG.format(log=tmp_path / "x") + "Finished jobid: 6 (Rule: cell)\n")
    assert [failure.output for failure in failures] == ["paper/main.pdf"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        ("error: out of device memory at length 20000: lower it", "out of memory"),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 68719476736 bytes.",
            "out of memory",
        ),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "out of memory"),
        ("error: No space left on device; free some space", "no space left on the disk"),
        ("error: x/y at 0123: the disk of /home/cache is full; make room", "no space left"),
        ("error: Read-only file system: results/x.part; make it", "a place that cannot be written"),
        ("PermissionError: [Errno 13] Permission denied: 'results/x.json'", "a place that cannot"),
        ("error: meta-llama/Llama at 0123: gated; accept its licence at", "a gated model"),
        (
            "error: a/b at 0123 could not be had from ModelScope (timeout); check the network, "
            "`repo` and `revision` of the model",
            "no network",
        ),
        ("error: a/b at 0123: https://huggingface.co cannot be reached (x)", "no network"),
        (
            "error: the likelihood of the answer to niah-1 is nan in torch.float16: the model "
            "overflows; use another dtype (float32 is the safest)",
            "NaN",
        ),
        ("error: length 9000 exceeds the 8192 tokens that model m reads", "error: length 9000"),
        ("KeyError: 'layers'", "KeyError: 'layers'"),
    ],
)
def test_the_likely_cause(line, expected):
    # A library's last words after the error do not hide it.
    tail = ["  50%|#####     | 1/2 [00:01<00:01]", line, "[W] leaked semaphore"]
    assert cause(tail, ROOMY).startswith(expected)


def test_words_of_a_text_are_no_cause():
    assert cause(["reading memory.txt: out of memory of old men"], ROOMY).startswith("killed")


def test_a_full_disk_may_have_swallowed_the_end_of_the_log():
    assert cause(["  0%|          | 0/2"], 4096).startswith("no space left on the disk")
