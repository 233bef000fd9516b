"""Times of two machines never stand in one ratio."""

import json

import synthetic
from rendering import render


def test_cells_of_another_machine_have_results_and_no_times(tmp_path):
    study = synthetic.make(tmp_path)
    cells = sorted((tmp_path / "results/cells").rglob("B20p-*.json"))
    elsewhere = [path for path in cells if "/niah_single/L1000/h2o/" in str(path)]
    for path in elsewhere:
        record = json.loads(path.read_text())
        record["provenance"]["cpu"] = "Another CPU"
        path.write_text(json.dumps(record))
    wide = render(tmp_path, study)[0].wide()
    there = (wide["task"] == "niah_single") & (wide["length"] == 1000)
    there &= (wide["method"] == "h2o") & (wide["budget"] == "20p")
    assert there.sum() == len(elsewhere) == 1
    assert wide.loc[there, ["prefill_s", "decode_ms_per_token"]].isna().all(axis=None)
    assert wide.loc[there, ["score", "nll", "cache_bytes_planned"]].notna().all(axis=None)
    assert wide.loc[~there, "prefill_s"].notna().all()
