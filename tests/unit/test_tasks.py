"""Tasks: exact lengths, no leak between splits, contexts that know nothing of the question."""

import itertools
import re
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvbudget import tasks
from kvbudget.errors import UserError
from kvbudget.models.random import byte_tokenizer
from kvbudget.tasks import base, niah, perplexity

SPLITS = tuple(base.SPLITS)
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def made_up_passages(count: int = 3000) -> list[str]:
    """Sentences of varied length, no two alike."""
    names = ("heaven", "earth", "sea", "light", "Zerubbabel", "mountain", "I", "wilderness")
    return [
        f"{' '.join(names[(i * k) % 8] for k in range(1, 3 + i % 23))} of verse{i}," + "!" * (i % 3)
        for i in range(count)
    ]


PASSAGES = made_up_passages()


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def subword() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer learnt on the passages, with a chat template and a BOS."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words = [niah.INSTRUCTION, niah.NEEDLE, niah.QUESTION, niah.ANSWER_PREFIX]
    tokenizer.train_from_iterator(PASSAGES + words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.chat_template = CHATML
    return wrapped


@pytest.fixture(params=["bytewise", "subword"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def make(kind, tokenizer, length, *, split="test", seed=1, contexts=3, questions=2, **options):
    return tasks.get(kind).make(
        tokenizer,
        PASSAGES,
        length=length,
        contexts=contexts,
        questions=questions,
        seed=seed,
        split=split,
        options={"name": f"some_{kind}", "kind": kind, "title": "Some", **options},
    )


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class TestTable:
    def test_unknown_kind(self):
        with pytest.raises(UserError, match="unknown kind 'nia'"):
            tasks.get("nia")

    def test_asking_for_one_task_imports_no_other(self):
        code = (
            "import sys; from kvbudget import tasks; tasks.get('perplexity');"
            "sys.exit('kvbudget.tasks.niah' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize("kind", list(tasks.KINDS))
    def test_unknown_options_and_splits_are_named(self, kind, bytewise):
        with pytest.raises(UserError, match=f"some_{kind}: unknown option 'neddles'"):
            make(kind, bytewise, 1000, neddles=1)
        with pytest.raises(UserError, match="unknown split 'train'"):
            make(kind, bytewise, 1000, split="train")


class TestNeedles:
    @pytest.mark.parametrize("needles", [1, 4])
    @pytest.mark.parametrize("length", [200, 217, 250, 333, 500, 1000, 2048])
    def test_length_is_within_one_percent(self, subword, length, needles):
        # Four needles and the wrapping fill about 300 tokens of this small vocabulary.
        if needles == 4:
            length += 200
        for split in SPLITS:
            for context in make("niah", subword, length, split=split, needles=needles):
                for question in context.questions:
                    total = len(context.ids) + len(question.ids)
                    assert abs(total - length) <= 0.01 * length

    @pytest.mark.parametrize("length", [700, 1001, 3000, 10_000])
    def test_length_in_bytes_too(self, bytewise, length):
        for context in make("niah", bytewise, length, needles=3, contexts=2):
            for question in context.questions:
                assert abs(len(context.ids) + len(question.ids) - length) <= 0.01 * length

    def test_the_prompt_reads_as_in_ruler(self, bytewise):
        (context,) = make("niah", bytewise, 1000, contexts=1, needles=1)
        (question,) = context.questions
        text = decode(bytewise, context.ids)
        needle = re.search(r"One of the special magic numbers for (\S+) is: (\d{7})\.", text)
        key, value = needle.groups()
        assert text.startswith(f"<s>{niah.INSTRUCTION}")
        assert decode(bytewise, question.ids) == (
            f"\nWhat is the special magic number for {key} mentioned in the provided text?"
            f" The special magic number for {key} mentioned in the provided text is"
        )
        assert question.references == [value]
        assert decode(bytewise, question.answer_ids) == f" {value}"
        assert question.max_new_tokens >= len(question.answer_ids)

    def test_the_chat_template_is_split_around_the_question(self, subword):
        (context,) = make("niah", subword, 600, contexts=1)
        (question,) = context.questions
        assert decode(subword, context.ids).startswith(f"<s>user\n{niah.INSTRUCTION}")
        assert context.ids.count(0) == 1  # the template wrote the BOS, nothing adds another
        head, _, prefix = decode(subword, question.ids).partition("</s>\n<s>assistant\n")
        assert head.startswith("\nWhat is the special magic number")
        assert prefix.startswith("The special magic number for")

    def test_needles_stand_between_passages_at_varied_depths(self, bytewise):
        depths = []
        for context in make("niah", bytewise, 4000, contexts=30):
            text = decode(bytewise, context.ids).removeprefix(f"<s>{niah.INSTRUCTION}")
            before, _, after = text.partition("One of the special")
            depths.append(len(before) / len(text))
            haystack = before + after.partition(". ")[2]
            for passage in re.split(r"(?<=,)!* ", haystack)[:-1]:
                assert any(passage.rstrip("!") in whole for whole in PASSAGES)
        assert min(depths) < 0.2
        assert max(depths) > 0.8

    def test_each_question_asks_for_another_needle(self, subword):
        for context in make("niah", subword, 800, questions=3, needles=4):
            asked = [question.references[0] for question in context.questions]
            text = decode(subword, context.ids)
            assert len(set(asked)) == 3
            for question in context.questions:
                key = re.search(r"number for (\S+) mentioned", decode(subword, question.ids))[1]
                assert f"numbers for {key} is: {question.references[0]}." in text

    def test_there_are_no_more_questions_than_needles(self, bytewise):
        assert [len(c.questions) for c in make("niah", bytewise, 1000, questions=5)] == [1, 1, 1]

    def test_the_context_does_not_depend_on_the_questions(self, subword):
        few = make("niah", subword, 800, questions=1, needles=4)
        many = make("niah", subword, 800, questions=4, needles=4)
        assert [context.ids for context in few] == [context.ids for context in many]

    def test_a_length_that_cannot_hold_the_needles(self, bytewise):
        with pytest.raises(UserError, match=r"200 tokens cannot hold 4 needles .* more than") as e:
            make("niah", bytewise, 200, needles=4)
        least = int(re.search(r"more than (\d+)", str(e.value))[1])
        make("niah", bytewise, least + 40, needles=4)
        with pytest.raises(UserError, match="needles must be at least 1"):
            make("niah", bytewise, 1000, needles=0)

    def test_score(self):
        assert niah.score(" 1234567.</s>", ["1234567"]) == 1
        assert niah.score("123456", ["1234567"]) == 0
        assert niah.score("ABC and d", ["abc", "x"]) == 0.5


class TestPerplexity:
    @pytest.mark.parametrize("length", [200, 201, 1000])
    def test_two_halves_of_one_text(self, tokenizer, length):
        for context in make("perplexity", tokenizer, length):
            (question,) = context.questions
            assert len(context.ids) == length // 2
            assert len(context.ids) + len(question.answer_ids) == length
            assert question.ids == question.references == []
            assert question.max_new_tokens == 0
            text = decode(tokenizer, context.ids + question.answer_ids)
            assert text.startswith("<s>")
            assert "assistant" not in text
            assert re.sub(" .*", "", text.removeprefix("<s>")) in " ".join(PASSAGES)

    def test_nothing_is_scored(self):
        assert perplexity.score("anything", []) is None

    def test_chunk_does_not_change_the_samples(self, bytewise):
        assert make("perplexity", bytewise, 400, chunk=1) == make("perplexity", bytewise, 400)
        with pytest.raises(UserError, match="chunk must be at least 1"):
            make("perplexity", bytewise, 400, chunk=0)
        with pytest.raises(UserError, match="option chunk must be of type int"):
            make("perplexity", bytewise, 400, chunk="64")


@pytest.mark.parametrize("kind", list(tasks.KINDS))
class TestSamples:
    def test_same_arguments_same_samples(self, kind, tokenizer):
        assert make(kind, tokenizer, 800) == make(kind, tokenizer, 800)

    def test_seed_and_length_change_them(self, kind, tokenizer):
        one, other, longer = (
            make(kind, tokenizer, length, seed=seed)
            for length, seed in ((800, 1), (800, 2), (900, 1))
        )
        ids = [context.id for context in [*one, *other, *longer]]
        assert len(set(ids)) == len(ids)
        for a, b, c in zip(one, other, longer, strict=True):
            assert a.ids != b.ids
            assert a.ids[:400] != c.ids[:400]

    def test_splits_share_no_passage(self, kind, tokenizer):
        """Passages carry their number: with many contexts, the ranges seen are disjoint."""
        seen = {}
        for split in SPLITS:
            text = "\n".join(
                decode(tokenizer, context.ids + context.questions[0].answer_ids)
                for context in make(kind, tokenizer, 1200, split=split, contexts=12)
            )
            seen[split] = {int(number) for number in re.findall(r"verse(\d+),", text)}
            assert len(seen[split]) > 50
        for one, other in itertools.combinations(SPLITS, 2):
            assert not seen[one] & seen[other]

    def test_contexts_do_not_overlap_while_there_is_text(self, kind, tokenizer):
        made = make(kind, tokenizer, 1000, contexts=4)
        for one, other in itertools.combinations(made, 2):
            a, b = (
                set(re.findall(r"verse\d+,", decode(tokenizer, context.ids)))
                for context in (one, other)
            )
            assert not a & b

    def test_a_haystack_that_is_too_short(self, kind, bytewise):
        for few in ([], PASSAGES[:3], PASSAGES[:20]):
            with pytest.raises(UserError, match="haystack is too short"):
                tasks.get(kind).make(
                    bytewise,
                    few,
                    length=5000,
                    contexts=1,
                    questions=1,
                    seed=1,
                    split="calibration",
                    options={},
                )


def test_splits_share_no_key_and_no_value(bytewise):
    drawn = {}
    for split in SPLITS:
        rng = base.draws(split)
        drawn[split] = [
            needle
            for _ in range(200)
            for needle in niah.draw_needles(bytewise, 4, 10_000, split, rng)
        ]
    for one, other in itertools.combinations(SPLITS, 2):
        for part in ("key", "value"):
            mine, theirs = ({getattr(n, part) for n in drawn[s]} for s in (one, other))
            assert not mine & theirs
    values = [int(needle.value) for needles in drawn.values() for needle in needles]
    assert min(values) >= 1_000_000
    assert max(values) <= 9_999_999
