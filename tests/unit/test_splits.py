"""Calibration, development and test share nothing: not by chance, but by what draws from where."""

import itertools
import re

import pytest
import synthetic
import yaml
from rendering import build
from specs import task

from kvbudget.calibration import prompts
from kvbudget.calibration.options import OPTIONS, TASKS
from kvbudget.calibration.records import contexts
from kvbudget.errors import UserError
from kvbudget.paper import check
from kvbudget.run.samples import samples_of
from kvbudget.sources.random import byte_tokenizer
from kvbudget.study import config as configs
from kvbudget.study.config import SCHEMA
from kvbudget.tasks import splits

#: A haystack that says where each passage stands.
VERSES = [f"And verse {number} said: {'so ' * (number % 7)}it is." for number in range(2000)]
LENGTH = 1500


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def drawn(tokenizer, tmp_path_factory) -> dict[str, str]:
    """By split: all that cells of it, or calibrations, read and are to answer."""
    haystack = tmp_path_factory.mktemp("splits") / "text.txt"
    haystack.write_text("\n".join(VERSES))
    kinds = {
        "needles": task("needles", "niah", needles=4),
        "tracking": task("tracking", "vt"),
        "words": task("words", "cwe"),
        "codes": task("codes", "fwe"),
        "reading": task("reading", "perplexity"),
    }
    made = {}
    for split in ("test", "development"):
        made[split] = ""
        for kind in kinds.values():
            # Words take more room than the rest.
            length = 4000 if kind["kind"] == "cwe" else LENGTH
            spec = {"task": kind, "length": length, "seed": 1, "split": split}
            spec["samples"] = {"contexts": 6, "questions": 1}
            for context in samples_of(spec, tokenizer, haystack):
                (question,) = context.questions
                made[split] += tokenizer.decode([*context.ids, *question.ids, *question.answer_ids])
    shared = {"contexts": 6, "seed": 1}
    mixed = prompts.mixture(tokenizer, VERSES, tasks=TASKS[:4], length=LENGTH, **shared)
    mixed += prompts.mixture(tokenizer, VERSES, tasks=TASKS[4:], length=4000, **shared)
    repeated = contexts(tokenizer, VERSES, [LENGTH], range(6), seed=1)
    read = [*(each.context + each.later for each in mixed), *repeated]
    made["calibration"] = "".join(map(tokenizer.decode, read))
    return made


def number_of(word: str) -> int:
    """The number that `kvbudget.tasks.splits.spell` made this word of."""
    return sum((ord(letter.lower()) - ord("a")) * 26**place for place, letter in enumerate(word))


#: Of what there is little: two that draw from the same would soon draw the same.
FEW = {
    "passage": r"And verse (\d+) said",
    "noun": r"numbers for [a-z]+-([a-z]+) is",
    "word": r"\d+\. ([a-z-]+)",
}
#: Of what there is so much that nothing is drawn twice: which of three it is dealt to.
MANY = {
    "value": (r"\b(\d{7})\b", lambda value: int(value) - 1_000_000),
    "assigned": (r"VAR [A-Z]+ = (\d{5})\b", lambda value: int(value) - 10_000),
    "variable": (r"VAR ([A-Z]+)", number_of),
    "code": (r"words are: ([a-z]{6}),", number_of),
}


@pytest.mark.parametrize("part", FEW)
def test_no_two_share_a_passage_a_noun_or_a_word(drawn, part):
    seen = {split: set(re.findall(FEW[part], text)) for split, text in drawn.items()}
    assert all(len(found) >= 6 for found in seen.values())
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other]


@pytest.mark.parametrize("part", MANY)
def test_values_and_names_are_those_that_only_the_split_can_draw(drawn, part):
    pattern, number = MANY[part]
    for turn, split in enumerate(splits.SPLITS):
        turns = [number(found) % 3 for found in re.findall(pattern, drawn[split])]
        assert set(turns) == {turn} or (part, split) == ("code", "calibration")


#: Calibration draws from the first fifth, development from the second, tests from the rest.
PARTS = {"calibration": (0, 400), "development": (400, 800), "test": (800, 2000)}


@pytest.mark.parametrize("split", splits.SPLITS)
def test_each_draws_from_the_part_of_the_text_that_is_its_own(drawn, split):
    first, end = PARTS[split]
    found = set(map(int, re.findall(FEW["passage"], drawn[split])))
    assert len(found) > 100
    assert first <= min(found) and max(found) < end


@pytest.mark.parametrize("split", ["test", "development"])
def test_translations_are_of_the_part_of_the_text_that_is_the_split_s_own(
    split, tokenizer, tmp_path
):
    (tmp_path / "text.txt").write_text("\n".join(f"{verse}\tEt cetera." for verse in VERSES))
    spec = {"task": task("reading", "streaming"), "length": LENGTH, "seed": 1, "split": split}
    spec["samples"] = {"contexts": 6, "questions": 1}
    contexts = samples_of(spec, tokenizer, tmp_path / "text.txt")
    read = "".join(tokenizer.decode(context.ids) for context in contexts)
    found = set(map(int, re.findall(FEW["passage"], read)))
    first, end = PARTS[split]
    assert len(found) > 100
    assert first <= min(found) and max(found) < end


def test_the_parts_are_all_of_the_text_and_none_is_twice():
    parts = [splits.split_passages(VERSES, split) for split in splits.SPLITS]
    assert [verse for part in parts for verse in part] == VERSES
    dealt = [splits.own(split, range(100)) for split in splits.SPLITS]
    assert sorted(itertools.chain(*dealt)) == list(range(100))


def test_a_study_cannot_ask_for_calibration_samples_nor_a_calibration_for_others():
    schema = yaml.safe_load(SCHEMA.read_text())
    config = yaml.safe_load(configs.BASE.read_text())
    assert configs.validate(config, schema)["split"] == "test"
    with pytest.raises(UserError, match="config: split"):
        configs.validate(config | {"split": "calibration"}, schema)
    assert "split" not in OPTIONS


def test_a_paper_of_the_development_split_that_does_not_say_so_is_refused(tmp_path):
    src, generated = build(tmp_path, synthetic.config(split="development"))
    tables = sorted(generated.rglob("tables/**/*.tex"))
    (generated.parent / "sections").mkdir()
    (generated.parent / "references.bib").touch()
    numbers = generated / "numbers.tex"
    check.check(generated.parent, numbers, tables, src.directory)
    said = numbers.read_text()
    assert said.count("\\developmentstudytrue") == 1
    numbers.write_text(said.replace("\\developmentstudytrue", ""))
    with pytest.raises(UserError, match="does not say that samples are of the split development"):
        check.check(generated.parent, numbers, tables, src.directory)
