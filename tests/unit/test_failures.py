"""failures.md says what failed, why, and how to run it again."""

from kvbudget.failures import find, report

LOG = """\
[Tue Nov 24 06:38:39 2026]
Error in rule cell:
    message: None
    jobid: 6
    input: results/models/m.verified.json
    output: results/s/cells/m/t/L400/h2o/B20p.json
    log: {log} (check log file(s) for error details)
    shell:
        python -m kvbudget.cell --spec '{{}}'
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
    page = report(failures, "snakemake --configfile x.yaml --cores 1")
    assert page.startswith("# 2 failed\n")
    command = "snakemake --configfile x.yaml --cores 1 results/s/cells/m/t/L400/h2o/B20p.json"
    assert f"    {command}\n" in page
    assert "    100%|####\n    error: out of memory\n" in page
    assert "10%|#\r" not in page
    assert "It left no log." in page


def test_a_log_without_errors_has_no_failures():
    assert find("Finished jobid: 3 (Rule: plan)\n1 of 2 steps (50%) done\n") == []
