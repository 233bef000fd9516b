"""The HTML report of a finished study."""

import pytest
from pipeline import snakemake

pytestmark = pytest.mark.workflow


def test_the_report_holds_figures_tables_and_their_captions(repo):
    result = snakemake(repo, "--report", "results/tiny/report.html")
    assert result.returncode == 0, result.stdout
    page = (repo / "results/tiny/report.html").read_text()
    for part in (
        "Study <strong>tiny</strong>: KV-cache compression methods",
        "Quality against kept bytes, by method.",
        "What each head does, layer by query head",
        "The paper of study tiny.",
        "paper/tiny/figures/loss_curves.pdf",
        "results/tiny/csv/comparisons.csv",
    ):
        assert part in page
