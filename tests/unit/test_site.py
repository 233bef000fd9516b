"""The page of results as a file: what it holds, where it points, and what it refuses."""

import json
import re
import subprocess
import sys

import pages
import pytest
import rendering
import synthetic

from kvbudget import UserError, cli
from kvbudget.paper import source
from kvbudget.paper.plots import style
from kvbudget.site import page, plain, points


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The plan of a study of two models, aggregated."""
    root = tmp_path_factory.mktemp("site")
    return rendering.plan_of(rendering.build(root, pages.settings())[0])


def opened(study):
    return source.load(study, study.parent / "csv", page.CSV)


def embedded(text):
    """The data inside a page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found)


def test_every_cell_is_a_point_that_leads_to_its_record(study):
    src, out = opened(study), study.parent / "site.html"
    cells = points.data(src, out)["cells"]
    records = [out.parent / path for cell in cells for path in cell["records"]]
    assert {path.resolve() for path in records} == {
        (src.study.root / cell.path).resolve() for cell in src.study.cells
    }
    for cell in cells:
        spec = json.loads((out.parent / cell["records"][0]).read_text())["spec"]
        assert (spec["model"], spec["length"]) == (cell["model"], cell["length"])
        assert spec["method"]["name"] == cell["method"]


def test_values_and_intervals_are_those_of_the_csv(study):
    src = opened(study)
    made = points.data(src, study.parent / "site.html")
    found = {(*points_key(made["cells"][i]), metric): row for i, metric, *row in made["values"]}
    for row in src.cells[src.cells["metric"].isin(["score", "nll"])].to_dict("records"):
        value, low, high, *_ = found[(*points_key(row), row["metric"])]
        assert value == pytest.approx(row["value"], rel=1e-4, abs=1e-9)
        assert (low, high) == pytest.approx((row["ci_low"], row["ci_high"]), rel=1e-4, abs=1e-9)


def points_key(row):
    return tuple(row[axis] for axis in ("model", "task", "length", "method", "budget"))


def test_speed_is_over_that_of_the_full_cache(study):
    made = points.data(opened(study), study.parent / "site.html")
    at = {points_key(cell): i for i, cell in enumerate(made["cells"])}
    value = {(i, metric): value for i, metric, value, *_ in made["values"]}
    place = ("tiny_a", "niah_single", 1000)
    full, h2o = at[(*place, "full", "full")], at[(*place, "h2o", "20p")]
    step = "decode_ms_per_token"
    assert value[h2o, "decode_ratio"] == pytest.approx(value[full, step] / value[h2o, step], 1e-3)


def test_methods_look_as_in_the_figures_of_the_paper(study):
    src = opened(study)
    made = points.methods(src.study)
    assert list(made) == src.study.methods
    for method, look in made.items():
        colour, marker, _ = style.look(src.study, method)
        assert (look["colour"], look["shape"]) == (colour, points.SHAPES[marker])
    assert made["uniform"]["main"] is False


def test_every_marker_of_the_paper_has_a_shape():
    assert {marker for _, marker in (*style.KNOWN.values(), *style.OTHERS)} <= points.SHAPES.keys()


@pytest.mark.parametrize(
    "title, said",
    [
        ("H2O & more", "H2O & more"),
        (r"$\textsc{Ours}_{\lambda}$, 4 bits", "Ours_λ, 4 bits"),
        (r"$\alpha \leq \mathcal{O}(n)$", "α ≤ O(n)"),
        (r"$\log n$", "log n"),
        (r"\$5", "$5"),
    ],
)
def test_titles_are_plain_text(title, said):
    assert plain.typeset(title) == said


def test_the_page_holds_all_that_it_needs(study):
    text = pages.write(study, pages.shade()).read_text()
    markup = re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", text)
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)', markup)
    assert not re.findall(r"@import|url\(", markup)
    assert len(text) < 2e6
    made = embedded(text)
    assert made["shade"]["tokens"] == pages.TOKENS  # a </script> in a text ends nothing
    assert made["shade"]["methods"][made["shade"]["first"]]["method"] == "head-aware"
    assert made["heads"]["tiny_b"]["heads"]["layer"] == []
    allocations = made["heads"]["tiny_a"]["allocations"]
    assert allocations[0]["title"].startswith("Head-Aware + groups, 10%, ")
    assert (study.parent / allocations[0]["record"]).exists()


def test_the_licence_of_what_stands_inside_is_there(study):
    assert "University of Washington Interactive Data Lab" in pages.write(study, None).read_text()


def test_csv_files_of_other_results_are_refused(study, tmp_path):
    settings = synthetic.config(seed=2)
    other = source.load(synthetic.make(tmp_path, settings), study.parent / "csv", page.CSV)
    with pytest.raises(UserError, match=r"no longer has, such as results/cells/.*; make it anew"):
        page.text(other, None, tmp_path / "site.html")


def test_a_draft_says_so(tmp_path):
    plan = synthetic.make(tmp_path)
    (first, *_) = source.load(plan, plan.parent / "csv").study.cells
    (tmp_path / first.path).unlink()
    rendering.render(tmp_path, plan, draft=True)
    text = pages.write(plan, None).read_text()
    assert "DRAFT: 1 planned cells are missing." in text


def test_the_command_writes_the_page_beside_the_plan(study, capsys):
    cli.main(["site", "--plan", str(study)])
    out = study.parent / "site.html"
    assert capsys.readouterr().out == f"{out}\n"
    assert embedded(out.read_text())["shade"] is None


def test_a_study_that_is_not_aggregated_is_told_in_one_line(tmp_path, capsys):
    plan = synthetic.make(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["site", "--plan", str(plan)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "csv is missing; run `snakemake" in line


def test_planning_needs_no_charts():
    code = (
        "import sys; from kvbudget.paper import registry; from kvbudget.study import shade, status;"
        "assert not {'torch', 'altair', 'vl_convert', 'rich', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_earlier_code_measured_is_said(tmp_path):
    plan = synthetic.make(tmp_path)
    rendering.render(tmp_path, plan)
    assert "earlier code" not in pages.write(plan, None).read_text()
    codes = plan.parent / "csv/code_digests.csv"
    first, *rows = codes.read_text().splitlines(keepends=True)
    rows[0] = rows[0].replace("measured", "earlier code")
    codes.write_text("".join([first, *rows]))
    text = pages.write(plan, None).read_text()
    assert f"1 of {len(rows)} results were measured by earlier code." in text
