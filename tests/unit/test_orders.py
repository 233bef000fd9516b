"""Methods in an expected order, and at the bytes that they hold: CSV files, tables, a figure."""

import json

import pytest
import rendering
import synthetic
from matplotlib import pyplot as plt

from kvbudget.analysis.held_rows import held_rows
from kvbudget.analysis.measured import measured
from kvbudget.analysis.order_rows import order_rows
from kvbudget.paper.plots import leaderboard, style
from kvbudget.study import records

#: Presses: what they are called, how good they are, and whether they mask what they evict.
SKILL = {"good": 0.9, "fair": 0.5, "bad": 0.05, "masking": 0.8}
BUDGETS = ["5%", "10%", "20%"]


def settings(orders=(("good", "fair", "bad"),)) -> dict:
    """A study of presses beside a method of ours in four bits and its 16-bit twin."""
    found = synthetic.config(samples={"contexts": 25, "questions": 4})
    presses = {
        name: {"policy": "kvpress", "title": f"kvpress {name}", "press": "SnapKVPress"}
        for name in SKILL
    }
    ours = found["methods"]["head-aware"]
    four, sixteen = ours | {"bits": 4}, ours | {"title": "In 16 bits"}
    own = {"head-aware": four, "head-aware-16bit": sixteen}
    found["methods"] = {**found["methods"], **presses, **own}
    found["tasks"] = {"needles": {"kind": "niah", "needles": 4, "title": "One of four"}}
    place = {
        "name": "peers",
        "title": "Beside others",
        "tasks": ["needles"],
        "lengths": [1000],
        "methods": ["full", *SKILL, "h2o", *own, "uniform"],
        "budgets": BUDGETS,
        "orders": [list(order) for order in orders],
    }
    found["experiments"] = [found["experiments"][0] | place]
    return found


def as_others_do(study) -> None:
    """Records of presses claim what they planned, and one holds everything."""
    for file in study.parents[1].glob("cells/*/needles/*/*/*.json"):
        record = json.loads(file.read_text())
        memory, method = record["memory"], record["spec"]["method"]
        if method["policy"] != "kvpress":
            continue
        memory["cache_bytes_claimed"] = memory["cache_bytes_planned"]
        held = "full" if method["name"] == "masking" else "planned"
        memory["cache_bytes_allocated"] = memory[f"cache_bytes_{held}"]
        file.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """The study rendered."""
    root = tmp_path_factory.mktemp("orders")
    with pytest.MonkeyPatch.context() as patch:
        for name, skill in SKILL.items():
            patch.setitem(synthetic.SKILL, name, skill)
        study = synthetic.make(root, settings())
    as_others_do(study)
    return rendering.render(root, study)


# --- orders


def test_each_method_is_compared_with_the_next_at_every_budget(peers):
    src, _ = peers
    orders = src.table("orders")
    pairs = orders[["method", "reference", "budget"]].drop_duplicates()
    assert len(pairs) == 2 * len(BUDGETS)
    assert set(zip(pairs["method"], pairs["reference"], strict=True)) == {
        ("good", "fair"),
        ("fair", "bad"),
    }
    assert set(orders["metric"]) == {"score", "nll", "choice"}
    assert set(orders["family"]) == {2 * len(BUDGETS)}
    cells = src.cells.set_index(["method", "budget", "metric"])["value"]
    for row in orders.itertuples():
        own, next_ = (cells[name, row.budget, row.metric] for name in (row.method, row.reference))
        assert row.difference == pytest.approx(own - next_)


def test_the_verdict_says_whether_an_order_holds(peers):
    src, _ = peers
    nll = src.table("orders").query("metric == 'nll'")
    assert set(nll["verdict"]) == {"better"}
    study, groups = src.study, measured(records.load(src.study)[0])
    study.config["experiments"][0]["orders"] = [["bad", "good"]]
    contrary = order_rows(study, groups).query("metric == 'nll'")
    assert set(contrary["verdict"]) == {"worse"}
    study.config["experiments"][0]["orders"] = [["good", "good"]]
    assert set(order_rows(study, groups)["verdict"]) == {"unclear"}
    study.config["experiments"][0]["orders"] = settings()["experiments"][0]["orders"]


def test_orders_stand_in_a_table(peers):
    src, paper = peers
    table = (paper / "tables/experiments/peers.tex").read_text()
    line = next(line for line in table.splitlines() if r"kvpress good \(>\) kvpress fair" in line)
    assert "holds" in line
    row = src.table("orders").query("method == 'good' and budget == '5p' and metric == 'nll'")
    assert f"{row['difference'].iloc[0]:.2f}"[1:] in line


# --- held


def test_what_masks_has_no_cache_at_any_budgets_bytes(peers):
    src, paper = peers
    held = src.table("held")
    assert set(held["method"]) == {
        *("good", "fair", "bad", "h2o", "head-aware", "head-aware-16bit", "uniform")
    }
    assert (held["allocated"] <= 1.2 * held["planned"]).all()
    assert (held["budget"] == held["level"]).all()
    table = (paper / "tables/experiments/peers.tex").read_text()
    part = table.split("really allocated")[1]
    line = next(line for line in part.splitlines() if "kvpress masking" in line)
    assert line.count("& --") == 4


def test_the_largest_cache_that_fits_is_taken(peers):
    src, _ = peers
    cells = src.cells.copy()
    ours = (cells["method"] == "head-aware") & (cells["metric"] == "cache_bytes_allocated")
    cells.loc[ours, "value"] /= 2  # as four bits of a run in float32
    held = held_rows(cells)
    found = held[(held["method"] == "head-aware") & (held["metric"] == "score")]
    assert dict(zip(found["level"], found["budget"], strict=True)) == {
        "5p": "10p",
        "10p": "20p",
        "20p": "20p",
    }


def test_a_study_without_others_has_no_such_table(rendered):
    _, paper = rendered
    assert "really allocated" not in (paper / "tables/experiments/lengths.tex").read_text()


def test_claimed_bytes_stand_beside_allocated_ones(peers, rendered):
    heads = [
        next(
            line
            for line in (paper / f"tables/experiments/{name}.tex").read_text().splitlines()
            if "prefill" in line
        )
        for (_, paper), name in ((peers, "peers"), (rendered, "lengths"))
    ]
    assert ["claimed" in head and "process" in head for head in heads] == [True, False]
    assert not any("device" in head for head in heads)  # there is none


# --- the figure


@pytest.mark.parametrize("others", [True, False])
def test_panels_of_a_leaderboard(peers, rendered, others):
    src = (peers if others else rendered)[0]
    figure = leaderboard.draw(src)
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == (["tokens evicted", "bytes saved"] if others else ["tokens evicted"])
    _, named = figure.axes[0].get_legend_handles_labels()
    shown = [*src.study.main_methods, *(["head-aware-16bit"] if others else [])]  # no other of ours
    titles = [style.title(src.study, "methods", method) for method in shown]
    assert sorted(named) == sorted(titles)
    plt.close(figure)


def test_places_on_the_axes(peers):
    src, _ = peers
    figure = leaderboard.draw(src)
    lines = [{c.get_label(): c.lines[0] for c in ax.containers} for ax in figure.axes]
    kept, held = (axis["kvpress masking"].get_xdata() for axis in lines)
    assert kept == pytest.approx([0.05, 0.1, 0.2], abs=0.01)
    assert list(held) == [1, 1, 1]
    ticks = figure.axes[0].xaxis.get_major_formatter()
    assert [ticks(share) for share in (1, 0.2, 0.05)] == ["0%", "80%", "95%"]
    cell = src.cells.query("method == 'masking' and metric == 'score' and budget == '20p'")
    assert lines[0]["kvpress masking"].get_ydata()[-1] == cell["value"].iloc[0]
    plt.close(figure)


def test_no_two_methods_look_alike(peers):
    src, _ = peers
    figure = leaderboard.draw(src)
    lines = [container.lines[0] for container in figure.axes[0].containers]
    looks = [(each.get_color(), each.get_marker(), each.get_linestyle()) for each in lines]
    assert len(set(looks)) == len(looks)
    plt.close(figure)
