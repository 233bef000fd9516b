"""The haystack: verses out of the shipped database, or the lines of a file."""

import hashlib
import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from kvbudget import cli
from kvbudget.errors import UserError
from kvbudget.sources import text
from kvbudget.sources.haystack import read_passages
from kvbudget.tasks import passages

VERSES = [
    ("k", 2, 1, 1, "Now these are the names"),
    ("k", 1, 1, 2, "And the earth was  without form, and void;"),
    ("k", 1, 1, 1, "In the beginning God created the heaven and the earth. "),
    ("4", 1, 1, 1, "God`s Spirit said, `Let there be light.`"),
    ("l", 2, 8, 1, "(7:26) L'Éternel dit à Moïse: Va (vite)"),
]


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> dict:
    """A package like the shipped one in a folder that pip takes for an index; its haystack."""
    database = tmp_path / "bible.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
        connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", VERSES)
        connection.commit()
    with zipfile.ZipFile(tmp_path / "verses-1.0-py3-none-any.whl", "w") as archive:
        archive.write(database, "verses/bible.db")
        archive.writestr("verses-1.0.dist-info/METADATA", "Name: verses\nVersion: 1.0\n")
        archive.writestr("verses-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return {
        "source": "pypi",
        "packages": ["verses==1.0"],
        "file": "verses/bible.db",
        "sha256": hashlib.sha256(database.read_bytes()).hexdigest(),
        "version": "k",
        "database": database,
    }


def test_one_verse_a_line_in_the_order_of_the_book(index, tmp_path):
    del index["database"]
    out = tmp_path / "text" / "kjv.txt"
    cli.main(["text", "--spec", json.dumps(index), "--out", str(out)])
    assert read_passages(out) == [
        "In the beginning God created the heaven and the earth.",
        "And the earth was without form, and void;",
        "Now these are the names",
    ]
    verified = json.loads((out.parent / "kjv.verified.json").read_text())
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert verified == {"sha256": digest, "lines": 3, "words": 23}
    assert sorted(path.name for path in out.parent.iterdir()) == ["kjv.txt", "kjv.verified.json"]


def test_marks_of_the_versions_are_mended(index):
    database = index["database"]
    assert list(text.verses(database, "4")) == ["God's Spirit said, 'Let there be light.'"]
    assert list(text.verses(database, "l")) == ["L'Éternel dit à Moïse: Va (vite)"]
    with pytest.raises(UserError, match="no version 'q'"):
        text.verses(database, "q")


def test_a_file_of_paragraphs(tmp_path):
    source = tmp_path / "book.txt"
    source.write_text("First  paragraph.\n\n\tSecond, with\u00a0é.\r\n", encoding="utf-8")
    verified = text.build({"source": "file", "path": str(source)}, tmp_path / "out.txt")
    assert read_passages(tmp_path / "out.txt") == ["First paragraph.", "Second, with é."]
    assert verified["lines"] == 2


ENCODED = [
    ("utf-8-sig", "\n"),
    ("utf-8", "\r\n"),
    ("utf-8", "\r"),
    ("utf-16", "\n"),
    ("utf-16-le", "\n"),
    ("utf-16-be", "\r\n"),
    ("utf-32", "\r\n"),
    ("utf-32-be", "\n"),
]


@pytest.mark.parametrize(("encoding", "end"), ENCODED)
def test_files_of_every_system_give_the_same_passages(encoding, end, tmp_path):
    """With the mark that says their encoding; joined files have one inside, too."""
    content = "Élan.\n\nSecond\f line.\n\ufeffThird.\n\n\n".replace("\n", end)
    if encoding[-3:] in ("-le", "-be"):
        content = f"\ufeff{content}"
    (tmp_path / "own.txt").write_bytes(content.encode(encoding))
    text.build({"source": "file", "path": str(tmp_path / "own.txt")}, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == "Élan.\nSecond line.\nThird.\n".encode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("One.\nTwo.\n".encode("utf-16-le"), "has NUL characters, .* such as UTF-16"),
        (b"One.\0Two.", "has NUL characters"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8"),
        ("Élan".encode("latin-1"), "is not UTF-8"),
        ("One.".encode("utf-16")[:-1], "is not UTF-16"),
        (b"\xef\xbb\xbf\r\n \x0c", "holds no text"),
    ],
)
def test_what_is_no_text_is_refused_with_the_remedy(content, named, tmp_path):
    (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(UserError, match=named) as caught:
        text.build({"source": "file", "path": str(tmp_path / "own.txt")}, tmp_path / "out.txt")
    assert "iconv -f" in str(caught.value) or "holds no text" in named
    assert not (tmp_path / "out.txt").exists()


def test_a_chapter_on_a_line_is_parted_at_ends_of_sentences(tmp_path):
    """Or a text of three lines would leave a split without a passage."""
    sentences = [f"This is sentence {i}, which says 3.14 times nothing." for i in range(100)]
    ideographs = "".join(f"第{i}个老人走到海边。" for i in range(300))
    chapters = [" ".join(sentences), ideographs, "word " * 500, "acgt" * 600, "Short. Lines. Stay."]
    (tmp_path / "own.txt").write_text("\n".join(chapters), encoding="utf-8")
    text.build({"source": "file", "path": str(tmp_path / "own.txt")}, tmp_path / "out.txt")
    made = read_passages(tmp_path / "out.txt")
    assert max(map(len, made)) <= text.LONGEST
    first = [passage for passage in made if "sentence" in passage]
    assert " ".join(first) == chapters[0]
    assert all(passage.endswith("nothing.") for passage in first)
    second = [passage for passage in made if "老" in passage]
    assert "".join(second) == ideographs
    assert all(passage.endswith("。") for passage in second)
    assert {len(passage) for passage in made if "word" in passage} == {999, 499}
    assert [len(passage) for passage in made if "acgt" in passage] == [1000, 1000, 400]
    assert made[-1] == chapters[-1]


def test_blank_lines_at_the_end_of_one_side_say_nothing(tmp_path):
    (tmp_path / "en.txt").write_text("One.\nTwo.\n\n\n")
    (tmp_path / "fr.txt").write_text("Un.\r\nDeux.\r\n")
    spec = {"source": "file", "path": str(tmp_path / "en.txt")}
    spec["translation"] = str(tmp_path / "fr.txt")
    text.build(spec, tmp_path / "pairs.txt")
    assert read_passages(tmp_path / "pairs.txt") == ["One.\tUn.", "Two.\tDeux."]


def test_a_parallel_text_has_a_translation_beside_each_passage(index, tmp_path):
    database = index.pop("database")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO bible VALUES ('l', 1, 1, 1, '(1:1) Au  commencement')")
        connection.execute("DELETE FROM bible WHERE bbName = 'l' AND bNumber = 2")
        connection.commit()
    archive = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.write(database, "verses/bible.db")
        wheel.writestr("verses-1.0.dist-info/METADATA", "Name: verses\nVersion: 1.0\n")
        wheel.writestr("verses-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    index |= {"version": "4", "translation": "l"}
    index["sha256"] = hashlib.sha256(database.read_bytes()).hexdigest()
    text.build(index, tmp_path / "pairs.txt")
    assert passages.pairs(read_passages(tmp_path / "pairs.txt")) == [
        ("God's Spirit said, 'Let there be light.'", "Au commencement")
    ]


def test_one_column_is_no_parallel_text():
    with pytest.raises(UserError, match="not a parallel text"):
        passages.pairs(["alone"])


def test_files_of_a_parallel_text_go_line_by_line(tmp_path):
    (tmp_path / "en.txt").write_text("One.\n\nTwo.\n\nThree.\f\n", encoding="utf-8")
    (tmp_path / "fr.txt").write_text("Un.\n \n\nQuatre.\nTrois\u2028.", encoding="utf-8")
    spec = {"source": "file", "path": str(tmp_path / "en.txt")}
    spec["translation"] = str(tmp_path / "fr.txt")
    text.build(spec, tmp_path / "pairs.txt")
    pairs = passages.pairs(read_passages(tmp_path / "pairs.txt"))
    # What is blank on one side moves nothing, and is left out by whoever needs both.
    wanted = [("One.", "Un."), ("Two.", ""), ("", "Quatre."), ("Three.", "Trois .")]
    assert pairs == wanted


def test_a_parallel_text_with_a_line_too_few_is_refused(tmp_path):
    """Also where the lines with text are as many."""
    (tmp_path / "en.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "fr.txt").write_text("Un.\nDeux.\n")
    spec = {"source": "file", "path": str(tmp_path / "en.txt")}
    spec["translation"] = str(tmp_path / "fr.txt")
    with pytest.raises(UserError, match="pairs: the text has 3 lines and its translation 2;"):
        text.build(spec, tmp_path / "pairs.txt")
    assert not (tmp_path / "pairs.txt").exists()


def test_digests_cover_the_translation(tmp_path):
    """The one of the text that is made, and the one that may be asked for."""
    (tmp_path / "en.txt").write_text("One.\n")
    spec = {"source": "file", "path": str(tmp_path / "en.txt")}
    spec["translation"] = str(tmp_path / "fr.txt")
    made = []
    for french in ("Un.\n", "Une.\n"):
        (tmp_path / "fr.txt").write_text(french)
        made.append(text.build(spec, tmp_path / "pairs.txt")["sha256"])
    assert made[0] != made[1]
    digest = hashlib.sha256(b"Une.\n").hexdigest()
    text.build(spec | {"translation_sha256": digest}, tmp_path / "pairs.txt")
    with pytest.raises(UserError, match=r"fr\.txt: sha256 is .*, expected 0000"):
        text.build(spec | {"translation_sha256": "0" * 64}, tmp_path / "pairs.txt")


COMMIT = "0" * 40


def test_a_data_set_until_there_are_enough_words(tmp_path, monkeypatch):
    """A folder is read by the same function as a repository of the hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    books = [{"text": "One two.\n\n Three  four."}, {"text": "Five."}, {"text": "Six."}]
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(book) + "\n" for book in books))
    spec = {"source": "hub", "repo": str(folder), "revision": COMMIT, "split": "train"}
    spec |= {"column": "text", "words": 5}
    text.build(spec, tmp_path / "out.txt")
    assert read_passages(tmp_path / "out.txt") == ["One two.", "Three four.", "Five."]
    with pytest.raises(UserError, match="has columns text, not 'txt'"):
        text.build(spec | {"column": "txt"}, tmp_path / "out.txt")
    with pytest.raises(UserError, match="holds 6 words, fewer than 7"):
        text.build(spec | {"words": 7}, tmp_path / "out.txt")
    with pytest.raises(UserError, match="could not be had from the hub"):
        text.build(spec | {"repo": str(tmp_path / "absent")}, tmp_path / "out.txt")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (
            {"source": "hub", "repo": "a/b", "revision": "main", "split": "s", "column": "c"}
            | {"words": 1},
            "full commit",
        ),
        ({"source": "web"}, "unknown source 'web'"),
        ({"source": "file"}, "'path'"),
        ({"source": "file", "path": "x", "translation_sha256": "0" * 64}, "'translation'"),
        ({"source": "file", "path": "x", "pth": "y"}, "unknown key 'pth'"),
        ({"source": "file", "path": "/absent.txt"}, "/absent.txt does not exist"),
        ({"source": "file", "path": __file__, "sha256": "0" * 64}, "expected 0000"),
    ],
)
def test_bad_input_is_named(spec, named, tmp_path):
    with pytest.raises(UserError) as caught:
        text.build(spec, tmp_path / "out.txt")
    assert named in str(caught.value)
    assert not (tmp_path / "out.txt").exists()


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such haystack"):
        read_passages(tmp_path / "absent.txt")
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"blank\.txt holds no text"):
        text.build({"source": "file", "path": str(tmp_path / "blank.txt")}, tmp_path / "out.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8"):
        text.build({"source": "file", "path": str(tmp_path / "latin.txt")}, tmp_path / "out.txt")
