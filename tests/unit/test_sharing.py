"""Which contexts of a study are read once for all methods, and where that pays."""

import pytest
from test_study import config as config_of_a_study
from test_study import expand

from kvbudget.study import prefills
from kvbudget.study.prefills import Prefills, can_adopt, of_study, worthwhile

config = config_of_a_study


@pytest.fixture
def entry(config) -> dict:
    """A study of one place and length, ten contexts, and its only experiment."""
    config["samples"] = {"contexts": 10}
    config["experiments"][0]["lengths"] = [500]
    return config["experiments"][0]


def only(config) -> Prefills:
    (place,) = of_study(expand(config))
    return place


def test_a_place_is_recorded_for_all_methods_and_budgets(config, entry):
    study = expand(config)
    place = only(config)
    assert place.cells == {cell.path for cell in study.cells}
    assert len(place.cells) == 5
    assert place.path == f"results/prefills/m/needle/L500/{place.identity[:10]}"
    assert not {"method", "budget", "calibration"} & place.spec.keys()
    entry["lengths"] = [500, 1000]
    entry["tasks"] = ["needle", "ppl"]
    assert [each.spec["length"] for each in of_study(expand(config))] == [500, 1000]


def test_who_evicts_while_the_context_is_read_adopts_nothing(config, entry):
    config["methods"]["pieces"] = {"policy": "h2o", "prefill_chunk": 64}
    config["tasks"]["read"] = {"kind": "streaming", "haystack": "pair"}
    files = {"path": "x.txt", "translation": "y.txt"}
    config["haystacks"]["pair"] = {"source": "file", **files}
    entry |= {"methods": ["h2o", "pieces"], "tasks": ["needle", "ppl"], "budgets": ["20%"]}
    more = {"name": "two", "tasks": ["read"], "methods": ["h2o"]}
    config["experiments"].append(entry | more)
    adopting = [cell.path for cell in expand(config).cells if can_adopt(cell)]
    (path,) = adopting
    assert "/needle/L500/h2o/" in path


def test_who_sees_hidden_states_adopts_nothing(config, entry):
    """Keys and values are recorded, not what they were projected from."""
    config["methods"] |= {
        "zap": {"policy": "kvzap"},
        "hidden": {"policy": "head-aware", "features": "hidden"},
        "diverse": {"policy": "head-aware", "features": "hidden", "rule": "diversity"},
    }
    config["calibration"] |= {"hidden_maps": ["hidden", "kvzap"]}
    entry |= {"methods": ["zap", "hidden", "diverse"]}
    adopting = [cell.method for cell in expand(config).cells if can_adopt(cell)]
    assert set(adopting) == {"diverse"}


def test_the_signals_are_those_of_all_methods_of_the_place(config, entry):
    config["methods"] |= {
        "snap": {"policy": "snapkv"},
        "window": {"policy": "head-aware", "rule": "window"},
    }
    signals = {
        ("full", "ours"): [],
        ("h2o",): ["received:Attention"],
        ("h2o", "snap"): ["received:Attention", "received:Window"],
        ("h2o", "window"): ["received:Attention", "received:Window"],
    }
    identities = set()
    for methods, wanted in signals.items():
        entry["methods"] = list(methods)
        place = only(config)
        assert place.spec["signals"] == wanted
        identities.add(place.identity)
    assert len(identities) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"dtype": "float32"},
        {"samples": {"contexts": 9}},
        {"device": "cpu"},
        {"models": {"m": {"source": "random", "context": 2000, "seed": 5}}},
        {"haystacks": {"h": {"source": "file", "path": "../x.txt"}}},
        {"tasks": {"needle": {"kind": "niah", "needles": 3}}},
    ],
)
def test_what_contexts_depend_on_names_them(config, entry, change, tmp_path):
    (tmp_path.parent / "x.txt").write_text("Another text.\n")
    before = only(config)
    changed = only(config | change)
    assert changed.identity != before.identity


def test_what_they_do_not_depend_on_does_not(config, entry):
    before = only(config)
    entry["budgets"] = ["30%"]
    config["methods"]["h2o"]["stride"] = 3
    config["methods"]["h2o"]["bits"] = 4
    config["calibration"]["length"] = 600
    assert only(config).identity == before.identity


def test_whether_contexts_are_shared_makes_no_other_cell(config, entry):
    before = [cell.path for cell in expand(config).cells]
    config["prefills"] = {"share": "never", "own_contexts": 5, "disk_gb": 1}
    assert [cell.path for cell in expand(config).cells] == before


def test_the_code_of_adoption_is_part_of_a_cell_and_that_of_recording_of_its_store():
    from kvbudget.study import provenance

    adopting = provenance.reachable(["kvbudget.run.cell"])
    assert {"kvbudget.cache.prefill", "kvbudget.run.prefills"} <= adopting
    assert "kvbudget.run.prefill" not in adopting
    assert "kvbudget.run.prefill" in provenance.reachable(["kvbudget.run.prefill"])


def test_contexts_are_recorded_where_that_saves_time(config, entry):
    study = expand(config | {"prefills": {"own_contexts": 2}})
    paths = [cell.path for cell in study.cells]
    assert [len(worthwhile(study, paths[:count])) for count in range(4)] == [0, 0, 1, 1]
    # Each of two cells would read all but one of its contexts anyway.
    for own, cells, pays in [(9, 5, False), (9, 16, True), (10, 5, False), (3, 2, False)]:
        assert only(config).pay(cells, own) is pays
    off = expand(config | {"prefills": {"share": "never"}})
    assert worthwhile(off, paths) == []


def test_the_store_is_where_a_clean_up_looks(config, entry):
    assert only(config).path.startswith(f"{prefills.STORE}/")
