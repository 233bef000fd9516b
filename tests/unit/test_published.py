"""A published study is the records of its archive, whatever code measured them; how they stand to
today's code is told, and what is seen to be the same counts as measured by it."""

import dataclasses
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from publishing import measure, planned, publish, write

from kvbudget.analysis import verify
from kvbudget.analysis.provenance_rows import code_rows
from kvbudget.errors import UserError
from kvbudget.study import attest, bundle, expand, published, records
from kvbudget.study.config import read
from kvbudget.study.plan import Study, load_study
from kvbudget.study.standing import ATTESTED, EARLIER, MEASURED, Standings

ROOT = Path(__file__).parents[2]
STORE = "results/published/tiny"
H2O = ("tiny-llama", "niah_single", 800, "h2o", "20p")
OURS = (*H2O[:3], "head-aware", "20p")


@pytest.fixture
def config() -> dict:
    return read("tiny", ROOT)


@pytest.fixture
def root(tmp_path) -> Path:
    shutil.copy(ROOT / "LICENSE", tmp_path)
    return tmp_path


def cell(study: Study, key: tuple = H2O):
    return next(each for each in study.cells if each.key == key)


@pytest.fixture
def archived(config, root) -> Study:
    """The tiny study measured and published; as it was planned."""
    study = planned(config, root)
    assert not study.published
    measure(study)
    assert publish(study) == (9, 9)
    return study


def earlier(study: Study, **parts: str) -> Study:
    """A study as code planned it that differed from today's in some modules or libraries."""

    def older(each):
        code = each.code[::-1]
        known = expand.code_parts(study)[each.code]
        write(study.root / f"results/code/{code}.json", known | parts)
        return replace(each, code=code, identity=each.identity[::-1])

    moved = {each.path: older(each) for each in study.calibrations}
    cells = [
        replace(older(each), calibration=each.calibration and moved[each.calibration].path)
        for each in study.cells
    ]
    return replace(study, cells=tuple(cells), calibrations=tuple(moved.values()))


def standings(study: Study) -> dict[tuple, str]:
    known = Standings(study)
    found = ((c.planned, known.of(c.planned, c.record)) for c in records.load(study)[0])
    return {planned.key: standing for planned, standing in found}


class TestPlan:
    def test_it_takes_what_is_published_and_nothing_is_left_to_measure(
        self, archived, config, root
    ):
        measure(archived)  # what was measured here since is another thing
        study = planned(config, root)
        assert study.published and study.left_out == 0
        assert {each.store for each in study.results} == {STORE}
        assert [each.key for each in study.cells] == [each.key for each in archived.cells]
        paths = {each.path for each in study.calibrations}
        assert {each.calibration for each in study.cells} == {None, *paths}
        assert planned(config, root, published.IGNORE).cells == archived.cells

    def test_a_plan_that_is_read_again_is_the_same(self, archived, config, root):
        study = planned(config, root)
        write(root / "results/tiny/study-0.json", study.as_json())
        assert load_study(root / "results/tiny/study-0.json") == study
        assert study.identity != planned(config, root, published.IGNORE).identity

    def test_other_code_finds_it_all_the_same(self, config, root):
        older = earlier(planned(config, root), **{"kvbudget.run.cell": "0"})
        measure(older)
        publish(older)
        assert planned(config, root).published

    def test_of_another_spec_nothing_is_taken(self, archived, config, root):
        config["methods"]["h2o"]["stride"] = 3
        study = planned(config, root)
        assert (len(study.cells), study.left_out) == (8, 1)
        assert H2O not in {each.key for each in study.cells}

    def test_nor_of_another_text_or_model(self, archived, config, root):
        config["models"]["tiny-llama"]["seed"] = 5
        with pytest.raises(UserError, match=r"none of the 9 cells .* PUBLISHED=ignore"):
            planned(config, root)
        del config["models"]["tiny-llama"]["seed"]
        (root / "LICENSE").write_text("another text")
        with pytest.raises(UserError, match="none of the 9 cells"):
            planned(config, root)

    def test_an_option_that_came_later_has_its_default(self, config, root):
        study = planned(config, root)
        specs = []
        for each in study.cells:
            spec = json.loads(json.dumps(each.spec))
            if each.key == OURS:
                del spec["method"]["features"]
            specs.append(replace(each, spec=spec))
        measure(replace(study, cells=tuple(specs)))
        publish(replace(study, cells=tuple(specs)))
        assert "features" not in cell(planned(config, root), OURS).spec["method"]
        config["methods"]["head-aware"]["features"] = "own"
        assert planned(config, root).left_out == 2  # of two tasks

    def test_a_part_of_a_study_is_the_study(self, config, root):
        whole = planned(config, root)
        measure(whole)
        for each in whole.cells:
            if each.task == "wait_3" or each.key == H2O:
                (root / each.path).unlink()
        assert publish(whole) == (6, 9)
        study = planned(config, root)
        assert (study.published, len(study.cells), study.left_out) == (True, 6, 3)
        assert [e["name"] for e in study.experiments] == ["lengths", "ablation", "perplexity"]

    def test_an_experiment_that_little_is_published_of_is_left_out(self, config, root):
        whole = planned(config, root)
        measure(whole)
        for each in whole.cells:
            if "lengths" in each.experiments and each.key != OURS:
                (root / each.path).unlink()
        publish(whole)  # one of the four of `lengths`, two of the three of `ablation`
        study = planned(config, root)
        assert cell(study, OURS).experiments == ("ablation",)
        assert [e["name"] for e in study.experiments] == ["ablation", "perplexity", "streaming"]

    def test_each_place_of_an_experiment_is_taken_for_itself(self, config, root):
        next(e for e in config["experiments"] if e["name"] == "lengths")["lengths"].append(700)
        whole = planned(config, root)
        measure(whole)
        for each in whole.cells:
            if each.length == 700 and each.method != "full":
                (root / each.path).unlink()
        publish(whole)  # of `lengths` all four at 800 tokens, and one of four at 700
        study = planned(config, root)
        lengths = [each.length for each in study.cells if "lengths" in each.experiments]
        assert lengths == [800] * 4

    def test_what_it_lacks_is_measured_where_that_is_asked_for(self, config, root):
        whole = planned(config, root)
        measure(whole)
        (root / cell(whole).path).unlink()
        publish(whole)
        study = planned(config, root, published.EXTEND)
        assert [each.path for each in study.cells if not each.published] == [cell(whole).path]
        assert not study.published
        measure(replace(study, cells=(cell(study),), calibrations=()))
        published.unpack(study)
        assert publish(study) == (9, 9)
        assert planned(config, root).left_out == 0

    def test_what_was_measured_anew_takes_the_place_of_what_is_published(self, config, root):
        today = planned(config, root)
        older = earlier(today, **{"kvbudget.run.cell": "0"})
        measure(older)
        publish(older)
        measure(replace(today, cells=(cell(today),), calibrations=()))
        study = planned(config, root, published.EXTEND)
        assert cell(study) == cell(today)
        assert sum(each.published for each in study.cells) == 8

    def test_what_is_measured_rests_on_the_published_calibration_of_the_same_spec(
        self, config, root
    ):
        today = planned(config, root)
        older = earlier(today, **{"kvbudget.run.calibrate": "0"})
        calibrated = next(each for each in today.cells if each.calibration)
        measure(older)
        (root / next(c for c in older.cells if c.key == calibrated.key).path).unlink()
        publish(older)
        study = planned(config, root, published.EXTEND)
        published.unpack(study)
        (mine,) = (each for each in study.cells if not each.published)
        assert mine.key == calibrated.key
        assert mine.calibration in {each.path for each in study.calibrations if each.published}
        measure(replace(study, cells=(mine,), calibrations=()))
        assert publish(study) == (9, 9)
        whole = planned(config, root)
        assert whole.left_out == 0
        assert all(each.published for each in whole.results)


class TestFiles:
    def test_they_are_unpacked_once_into_a_folder_of_their_own(self, archived, config, root):
        study = planned(config, root)
        assert len(published.outdated(study)) > 9
        published.unpack(study)
        assert published.outdated(study) == []
        assert {each.name for each in (root / "results").iterdir()} == {"published"}
        assert records.load(study) == (records.load(study)[0], [])
        (root / cell(study).path).write_text("mine, and newer")
        published.unpack(study)
        assert (root / cell(study).path).read_text() == "mine, and newer"
        os.utime(root / cell(study).path, ns=(0, 0))
        assert published.outdated(study) == [cell(study).path]
        published.unpack(study)
        assert "samples" in (root / cell(study).path).read_text()

    def test_an_archive_that_was_altered_is_refused(self, archived, config, root):
        archive = root / published.archive_of("tiny")
        whole = archive.read_bytes()
        archive.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="altered or cut short"):
            published.unpack(planned(config, root))

    def test_the_same_study_gives_the_same_bytes_and_they_are_few(self, archived, config, root):
        archive = root / published.archive_of("tiny")
        before = archive.read_bytes()
        study = planned(config, root)
        published.unpack(study)
        bundle.pack(study, archive)
        assert archive.read_bytes() == before
        assert len(before) < 30_000


class TestStanding:
    def of(self, config, root, **parts) -> Study:
        older = earlier(planned(config, root), **parts)
        measure(older)
        publish(older)
        study = planned(config, root)
        published.unpack(study)
        return study

    def test_by_the_same_code(self, archived, config, root):
        study = planned(config, root)
        published.unpack(study)
        assert {each.kind for each in standings(study).values()} == {MEASURED}

    def test_other_libraries_are_named_and_no_more(self, config, root):
        study = self.of(config, root, torch="2.0.0")
        (standing,) = set(standings(study).values())
        assert standing.kind == MEASURED
        (named,) = standing.libraries
        assert named.startswith("torch 2.0.0 → ")
        assert verify.counts(study) == ({MEASURED: 9}, [named])
        rows = code_rows(study, records.load(study)[0])
        assert set(rows["libraries"]) == {named}

    def test_earlier_code_is_stale_and_named_by_module(self, config, root):
        study = self.of(config, root, **{"kvbudget.run.files": "0", "torch": "2.0.0"})
        assert {each.kind for each in standings(study).values()} == {EARLIER}
        reasons = {reason for path, reason in verify.stale(study) if "/cells/" in path}
        assert reasons == {"measured by earlier code (kvbudget.run.files changed since)"}
        assert verify.counts(study)[0] == {EARLIER: 9}

    def test_what_was_computed_again_and_is_the_same_is_attested(self, config, root):
        study = self.of(config, root, **{"kvbudget.run.files": "0"})
        found = attest.stale(study)
        assert len(found) == 9 + 1
        attest.note(study, *next((p, r) for p, r in found if p.path == cell(study).path))
        assert standings(study)[H2O].kind == ATTESTED
        assert verify.counts(study) == ({EARLIER: 8, ATTESTED: 1}, [])
        assert len(attest.stale(study)) == 9
        (note,) = records.attestations(study, cell(study))
        assert note["contexts"] == 2 and note["code"] == expand.code_of(cell(study))
        bundle.pack(study, root / published.archive_of("tiny"))
        shutil.rmtree(root / STORE)
        study = planned(config, root)
        published.unpack(study)
        assert standings(study)[H2O].kind == ATTESTED


SAMPLE = {"id": "0", "context_id": "0", "nll": 1.5, "output": "a", "score": 1.0}
HERE = {
    "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
    "cuda": False,
    "kernels": {"cpu": "none"},
    "peers": {"kvpress": "0.5.5", "torch": "2.13.0", "transformers": "5.2.0"},
}


class TestComparison:
    def test_samples_are_compared_to_the_last_digit(self):
        record = {"samples": [SAMPLE, SAMPLE | {"id": "1", "nll": 2.0}], "timing": {"load_s": 1}}
        assert attest.difference(record, {"samples": [SAMPLE], "timing": {"load_s": 2}}) == ""
        again = {"samples": [SAMPLE | {"nll": 1.5000000000000002}, SAMPLE | {"id": "1"}]}
        assert attest.difference(record, again) == "nll of 2 in 2 samples"
        assert "id of 1" in attest.difference(record, {"samples": [SAMPLE | {"id": "2"}]})

    def test_a_calibration_is_compared_whole(self):
        made = {"code": "0", "heads": [1.0], "provenance": {"started": 1}}
        assert attest.difference(made, made | {"code": "1", "provenance": {"started": 2}}) == ""
        assert attest.difference(made, made | {"heads": [1.1]}) == "heads"

    @pytest.mark.parametrize(
        "changes, said",
        [
            ({}, ""),
            ({"device": "NVIDIA H200"}, "measured on NVIDIA H200, and there is no GPU here"),
            ({"kernels": "numba 0.68"}, "measured with kernels by numba 0.68 (here none)"),
            (
                {"versions": {"torch": "2.11.0", "transformers": "5.23.0"}},
                "measured with torch 2.11.0 (here 2.13.0)",
            ),
        ],
    )
    def test_what_cannot_be_compared_here(self, config, root, changes, said):
        each = cell(planned(config, root))
        record = synthetic.record(each)
        record["provenance"] |= {"kernels": "none", "versions": HERE["versions"]} | changes
        assert attest.hindrance(each, record, HERE) == said

    @pytest.mark.parametrize(
        "peers, said",
        [
            (HERE["peers"], ""),
            (HERE["peers"] | {"kvpress": "0.6"}, "measured with kvpress 0.5.5 (here 0.6)"),
            (None, "measured with kvpress, which is not here; make peers installs it"),
        ],
    )
    def test_what_kvpress_measured_is_compared_with_kvpress(self, config, root, peers, said):
        each = cell(planned(config, root))
        each = dataclasses.replace(
            each, spec=each.spec | {"method": each.spec["method"] | {"policy": "kvpress"}}
        )
        record = synthetic.record(each)
        record["provenance"] |= {"kernels": "numba 0.68", "versions": HERE["peers"]}
        assert attest.hindrance(each, record, HERE | {"peers": peers}) == said
