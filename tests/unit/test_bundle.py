"""Archives of results from others: nothing that was altered, and nothing outside of results/."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from kvbudget.errors import UserError
from kvbudget.study.bundle import unpack

CELL = "cells/m/niah/L800/h2o/B12.5p-0123456789.json"
FILES = {
    CELL: b'{"schema": 1}',
    "models/m.verified.json": b"{}",
    "text/kjv-0123456789.verified.json": b"{}",
    "calibrations/m/default-0123456789.json": b"{}",
    f"code/{'a' * 64}.json": b"{}",
}
#: The plan's entry of the cell.
ENTRY = {
    "spec": {},
    "code": "a" * 64,
    "identity": "0123456789",
    "text": "results/text/kjv-0123456789.txt",
    "calibration": None,
    "experiments": ["lengths"],
    "store": "results",
}


def manifest(files: dict[str, bytes], **changes) -> dict:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    plan = {"models": {"m": "b" * 64}, "cells": [ENTRY], "calibrations": []}
    return {"format": 3, "study": "tiny", "files": digests, **plan} | changes


def archive(path: Path, files: dict[str, bytes], listed: dict | None = None) -> Path:
    """An archive as anyone might write it."""
    with tarfile.open(path, "w:xz") as tar:
        listed = manifest(files) if listed is None else listed
        for name, content in {"manifest.json": json.dumps(listed).encode(), **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def refusal(path: Path, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        unpack(path, root)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("*.json"))
    return str(caught.value)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "clone").mkdir()
    return tmp_path / "clone"


def test_all_files_arrive(root, tmp_path):
    assert unpack(archive(tmp_path / "b.tar.xz", FILES), root) == ("tiny", 1)
    for name, content in FILES.items():
        assert (root / "results" / name).read_bytes() == content
    assert unpack(tmp_path / "b.tar.xz", root) == ("tiny", 1)  # once more does no harm


def test_nothing_that_is_there_is_replaced_by_something_else(root, tmp_path):
    mine = root / "results" / CELL
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    path = archive(tmp_path / "b.tar.xz", FILES)
    with pytest.raises(UserError, match="is there already and differs from the bundle's"):
        unpack(path, root)
    assert [file for file in root.rglob("*") if file.is_file()] == [mine]


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.json",
        "/tmp/escaped.json",
        "../../escaped.json",
        "cells/../../../escaped.json",
        "calibrations/..json",
        "models/m/model.safetensors",
        "cells/m/niah/L800/h2o/B20p-0123456789.json\nx",
        "workflow/rules/cells.smk",
        ".git/hooks/post-checkout",
    ],
)
def test_a_name_that_is_no_result(name, root, tmp_path):
    before = set(tmp_path.rglob("*"))
    path = archive(tmp_path / "b.tar.xz", {**FILES, name: b"{}"})
    assert "is no name of a result" in refusal(path, root)
    assert set(tmp_path.rglob("*")) - before == {path}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_an_entry_that_is_no_plain_file(kind, root, tmp_path):
    path = tmp_path / "b.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        entry = tarfile.TarInfo(CELL)
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    assert "is no plain small file" in refusal(path, root)


@pytest.mark.parametrize(
    "change",
    [
        {CELL: b'{"schema": 2}'},
        {CELL: None},
        {"calibrations/m/other-0123456789.json": b"{}"},
    ],
    ids=["altered", "left out", "added"],
)
def test_files_that_the_manifest_does_not_list_so(change, root, tmp_path):
    files = {name: content for name, content in {**FILES, **change}.items() if content}
    path = archive(tmp_path / "b.tar.xz", files, manifest(FILES))
    message = refusal(path, root)
    assert f"{next(iter(change))} is not what the manifest says" in message
    assert "get it again" in message


@pytest.mark.parametrize("listed", [{}, [], {"format": 3, "study": "tiny"}])
def test_no_manifest(listed, root, tmp_path):
    assert "no manifest" in refusal(archive(tmp_path / "b.tar.xz", FILES, listed), root)


def test_a_format_to_come(root, tmp_path):
    path = archive(tmp_path / "b.tar.xz", FILES, manifest(FILES, format=4))
    assert "has format 4, this version reads 3" in refusal(path, root)


def test_what_is_no_whole_archive(root, tmp_path):
    path = archive(tmp_path / "b.tar.xz", FILES)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:middle], flipped, b"no archive", b""):
        path.write_bytes(content)
        assert "it was altered or cut short" in refusal(path, root)
    assert "does not exist" in refusal(tmp_path / "absent.tar.xz", root)
