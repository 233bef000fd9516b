"""The page of results, as the workflow makes it: on demand, from results that it leaves alone."""

import re

import pytest
from pipeline import away, snakemake

pytestmark = pytest.mark.workflow


def test_the_page_is_made_when_it_is_asked_for(repo):
    assert not (repo / "results/tiny/site.html").exists()
    result = snakemake(repo, "--", "site")
    assert result.returncode == 0, result.stdout
    page = repo / "results/tiny/site.html"
    assert f"The page of results of study 'tiny' is {page}" in result.stdout
    rules = set(re.findall(r"^(?:local)?rule (\w+):$", result.stdout, re.MULTILINE))
    assert rules == {"shade", "site"}
    (shaded,) = (repo / "results/tiny").glob("shade-*.json")
    assert '"h2o"' in shaded.read_text()
    assert "Nothing to be done" in snakemake(repo, "--", "site").stdout
    # As with cells, what was read once needs neither weights nor text again.
    (text,) = (repo / "results/text").glob("license-*.txt")
    with away(repo / "results/models/tiny-llama"), away(text):
        assert "Nothing to be done" in snakemake(repo, "--", "site").stdout
    report = snakemake(repo, "--report", ".snakemake/report.html", "--", "all", "site")
    assert report.returncode == 0, report.stdout
    assert "Every measured point" in (repo / ".snakemake/report.html").read_text()
