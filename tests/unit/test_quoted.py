"""Prose about published results: its numbers are those of the archives, and its verdicts hold."""

from pathlib import Path

import pandas as pd
import pytest
from publishing import ROOT, folder, measure, planned, publish

from kvbudget.errors import UserError
from kvbudget.site import markdown, quoted
from kvbudget.study.config import read


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder like the repository, in which the tiny study is published."""
    root = folder(tmp_path_factory.mktemp("published"))
    study = planned(read("tiny", ROOT), root)
    measure(study)
    publish(study)
    return root


@pytest.fixture
def fill(root, tmp_path):
    def filled(text: str) -> str:
        template = tmp_path / "some.md.j2"
        template.write_text('{% set s = study("tiny") %}\n' + text)
        return quoted.fill(template, root)

    return filled


def row(**values) -> pd.DataFrame:
    """One comparison of ours with H2O: worse by .125 of -.2 to -.05."""
    usual = {
        "model": "tiny-llama",
        "task": "niah_single",
        "length": 800,
        "experiment": "lengths",
        "budget": "20p",
        "method": "head-aware",
        "reference": "h2o",
        "kind": "baseline",
        "metric": "score",
        "difference": -0.125,
        "ci_low": -0.2,
        "ci_high": -0.05,
        "verdict": "worse",
        "all_kept": False,
    }
    return pd.DataFrame([usual | values])


@pytest.fixture
def study(root) -> quoted.Quoted:
    """The study, of which these comparisons are published: together level, in NLL better."""
    plan, tables = markdown.tables_of("tiny", root)
    nll = {"metric": "nll", "difference": -0.0104, "verdict": "better"}
    level = {"verdict": "unclear", "difference": 0.031, "ci_low": -0.01, "ci_high": 0.07}
    pooled = pd.concat([row(**level), row(**nll)])
    return quoted.Quoted(plan, tables | {"comparisons": row(), "pooled": pooled})


def test_numbers_are_those_of_the_tables(root, fill):
    text = markdown.in_short("tiny", "lengths", root)
    full, _, _, ours = text.rsplit("\n", 1)[1].strip("| ").split(" | ")
    short = " / ".join(part.removeprefix("0") for part in ours.split(" / "))
    assert fill('{{ s.both("tiny", 800, "20%") }}') == short
    assert fill('{{ s.score("tiny", 800, "20%") }} / {{ s.nll("tiny", 800, "20%") }}') == short
    # The full cache has no budget.
    both = fill('{{ s.both("tiny", 800, "20%", "full") }}')
    assert both == " / ".join(part.removeprefix("0") for part in full.split(" / "))
    score = short.split(" / ")[0]
    assert fill('{{ s.scores("tiny", (800, 800), "20%") }}') == f"{score}, {score}"
    assert fill('{{ in_short("tiny", "lengths") }}') == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('s.score("tiny", 900, "20%")', "no numbers are published of tiny-llama, niah_single, 900"),
        ('s.score("big", 800, "20%")', "0 models begin with 'big'"),
        (
            's.ahead("lengths", "tiny", "20%", "h2o")',
            "it says 'clearly better' of lengths, tiny-ll",
        ),
        ('s.clear("better", ("h3o",))', "there is no comparison with h3o"),
    ],
)
def test_what_is_not_published_or_does_not_hold_is_no_text(fill, text, error):
    with pytest.raises(UserError, match=rf"some.md.j2: {error}"):
        fill(f"{{{{ {text} }}}}")


def test_a_verdict_is_that_of_the_corrected_test(study):
    where = ("lengths", "tiny", "20%", "h2o")
    assert study.more(*where) == ".03"
    assert study.more(*where, digits=3) == ".031"
    assert study.ahead(*where, "nll") == ".010"
    assert study.behind(*where, length=800) == ".12"
    assert study.behind(*where, length=800, interval=True) == ".12 (.05 to .20)"
    assert study.more(*where, interval=True) == ".03 (−.01 to .07)"
    for said in (study.ahead, study.behind, study.less):
        with pytest.raises(UserError, match="and it is 'better, not clearly'"):
            said(*where)


def test_a_place_needs_its_length(root):
    plan, tables = markdown.tables_of("tiny", root)
    several = pd.concat([row(), row(length=1600)])
    study = quoted.Quoted(plan, tables | {"comparisons": several})
    with pytest.raises(UserError, match="2 numbers are published of lengths"):
        study.behind("lengths", "tiny", "20%", "h2o", task="niah_single")


def test_verdicts_are_counted(study):
    assert study.clear("worse", ("h2o",)) == "0 of 1"
    assert study.clear("better", ("h2o",), "nll") == "1 of 1"
    assert study.clear("worse") == "0 of 1"


def test_it_says_how_many_cells_are_told(study):
    assert study.told == "9 of 9"
