"""Archives of results from others: nothing that was altered, and nothing outside of results/."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from kvbudget.errors import UserError
from kvbudget.study.bundle import unpack

PUBLISHED = sorted((Path(__file__).parents[2] / "results/published").glob("*.tar.gz"))

CELL = "results/tiny/cells/m/niah/L800/h2o/B12.5p.json"
FILES = {
    CELL: b'{"schema": 1}',
    "results/models/m.verified.json": b"{}",
    "results/text/kjv.verified.json": b"{}",
    "results/tiny/calibrations/m.json": b"{}",
    f"results/tiny/code/{'a' * 64}.json": b"{}",
    "results/environment.json": b"{}",
}


def manifest(files: dict[str, bytes], **changes) -> dict:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"format": 1, "study": "tiny", "files": digests} | changes


def archive(path: Path, files: dict[str, bytes], listed: dict | None = None) -> Path:
    """An archive as anyone might write it."""
    with tarfile.open(path, "w:gz") as tar:
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


def test_all_files_arrive_with_one_age(root, tmp_path):
    assert unpack(archive(tmp_path / "b.tar.gz", FILES), root) == ("tiny", 1)
    for name, content in FILES.items():
        assert (root / name).read_bytes() == content
    assert len({(root / name).stat().st_mtime_ns for name in FILES}) == 1
    assert unpack(tmp_path / "b.tar.gz", root) == ("tiny", 1)  # once more does no harm


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.json",
        "/tmp/escaped.json",
        "results/../../escaped.json",
        "results/tiny/cells/../../../../escaped.json",
        "results/tiny/calibrations/..json",
        "results/models/m/model.safetensors",
        "results/tiny/cells/m/niah/L800/h2o/B20p.json\nx",
        "workflow/rules/cells.smk",
        ".git/hooks/post-checkout",
    ],
)
def test_a_name_that_is_no_result(name, root, tmp_path):
    before = set(tmp_path.rglob("*"))
    path = archive(tmp_path / "b.tar.gz", {**FILES, name: b"{}"})
    assert "is no name of a result" in refusal(path, root)
    assert set(tmp_path.rglob("*")) - before == {path}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_an_entry_that_is_no_plain_file(kind, root, tmp_path):
    path = tmp_path / "b.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(CELL)
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    assert "is no plain small file" in refusal(path, root)


@pytest.mark.parametrize(
    "change",
    [
        {CELL: b'{"schema": 2}'},
        {CELL: None},
        {"results/tiny/calibrations/other.json": b"{}"},
    ],
    ids=["altered", "left out", "added"],
)
def test_files_that_the_manifest_does_not_list_so(change, root, tmp_path):
    files = {name: content for name, content in {**FILES, **change}.items() if content}
    path = archive(tmp_path / "b.tar.gz", files, manifest(FILES))
    message = refusal(path, root)
    assert f"{next(iter(change))} is not what the manifest says" in message
    assert "get it again" in message


@pytest.mark.parametrize("listed", [{}, [], {"format": 1, "study": "tiny"}])
def test_no_manifest(listed, root, tmp_path):
    assert "no manifest" in refusal(archive(tmp_path / "b.tar.gz", FILES, listed), root)


def test_a_format_to_come(root, tmp_path):
    path = archive(tmp_path / "b.tar.gz", FILES, manifest(FILES, format=2))
    assert "has format 2, this version reads 1" in refusal(path, root)


def test_what_is_no_whole_archive(root, tmp_path):
    path = archive(tmp_path / "b.tar.gz", FILES)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (whole[:middle], flipped, b"no archive", b""):
        path.write_bytes(content)
        assert "it was altered or cut short" in refusal(path, root)
    assert "does not exist" in refusal(tmp_path / "absent.tar.gz", root)


def test_another_study_makes_nothing_of_the_first_stale(root, tmp_path):
    unpack(archive(tmp_path / "b.tar.gz", FILES), root)
    for name in FILES:
        os.utime(root / name, (1000, 1000))
    other = {name.replace("tiny", "other"): content for name, content in FILES.items()}
    listed = manifest(other, study="other")
    assert unpack(archive(tmp_path / "c.tar.gz", other, listed), root) == ("other", 1)
    assert {(root / name).stat().st_mtime for name in FILES} == {1000}
    assert (root / CELL.replace("tiny", "other")).stat().st_mtime > 1000


def test_what_is_published_is_whole_and_goes_together(tmp_path):
    assert PUBLISHED
    for file in PUBLISHED:
        study, cells = unpack(file, tmp_path)
        assert f"{study}.tar.gz" == file.name and cells
