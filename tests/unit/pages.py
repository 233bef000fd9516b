"""A page of results of the made-up study, and what it shows of a made-up context."""

import base64
from pathlib import Path

import numpy as np
import synthetic

from kvbudget.paper import source
from kvbudget.site import page

TOKENS = ["Once", " upon", " a", " time", " </script>", " <b>", " &amp;", " 4711", " the", " end"]


def shade(methods=("h2o", "head-aware")):
    """A context of ten tokens: H2O keeps the first half in each head, Head-Aware what the question
    asks for in the first head alone."""

    def bits(kept):
        flags = np.isin(np.arange(len(TOKENS)), kept)
        return base64.b64encode(np.packbits(flags).tobytes()).decode()

    heads = {"h2o": [bits(range(5))] * 2, "head-aware": [bits([7]), bits([9])]}
    return {
        "schema": 1,
        "model": "tiny_a",
        "task": "niah_single",
        "length": 500,
        "budget": "20%",
        "context": "c/0",
        "tokens": TOKENS,
        "question": "Which number?",
        "reference": ["4711"],
        "marked": [[7, 8]],
        "layers": [0, 2],
        "methods": [
            {"method": name, "record": "r.json", "kept": [heads[name], heads[name]]}
            for name in methods
        ],
    }


def write(study: Path, context) -> Path:
    """The page of a made and aggregated study, beside its plan."""
    out = study.parent / "site.html"
    src = source.load(study, study.parent / "csv", page.CSV)
    out.write_text(page.text(src, context, out), encoding="utf-8")
    return out


def settings():
    """Two models, of which one has no calibration: no method of ours."""
    config = synthetic.config()
    config["models"]["tiny_b"] = {"source": "pypi", "packages": ["b==1"], "title": r"$\beta$-Tiny"}
    config["tasks"]["niah_single"] |= {"needles": 4}
    peers = {**config["experiments"][1], "name": "peers", "models": ["tiny_b"]}
    config["experiments"].append(peers | {"methods": ["full", "h2o"]})
    return config
