"""Tasks: exact lengths, no leak between splits, contexts that know nothing of the question."""

import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest
import tokenizers
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvbudget.errors import UserError
from kvbudget.options import filled
from kvbudget.sources.random import byte_tokenizer
from kvbudget.tasks import cwe, fwe, niah, perplexity, registry, splits, vt
from kvbudget.tasks.request import Request

SPLITS = tuple(splits.SPLITS)
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
PARALLEL = [f"{passage}\t{passage.upper()}" for passage in PASSAGES]


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
    words = [*niah.INSTRUCTION.values(), niah.NEEDLE, *niah.QUESTION.values(), vt.NOISE]
    words += [*niah.ANSWER_PREFIX.values(), vt.QUESTION, vt.ANSWER_PREFIX, *cwe.words()[::9]]
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
    request = Request(
        tokenizer,
        PARALLEL if kind == "streaming" else PASSAGES,
        length=length,
        contexts=contexts,
        questions=questions,
        seed=seed,
        split=split,
    )
    known = filled(f"tasks: some_{kind}", options, registry.options_of(kind))
    return registry.load(kind).make(request, registry.options_from(kind, known))


def decode(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class TestTable:
    def test_unknown_kind(self):
        with pytest.raises(UserError, match="unknown kind of task 'nia', did you mean 'niah'"):
            registry.load("nia")

    def test_asking_for_one_task_imports_no_other(self):
        code = (
            "import sys; from kvbudget.tasks import registry; registry.load('perplexity');"
            "sys.exit('kvbudget.tasks.niah' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize("kind", list(registry.KINDS))
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
        assert text.startswith(f"<s>{niah.INSTRUCTION[False]}")
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
        assert decode(subword, context.ids).startswith(f"<s>user\n{niah.INSTRUCTION[False]}")
        assert context.ids.count(0) == 1  # the template wrote the BOS, nothing adds another
        head, _, prefix = decode(subword, question.ids).partition("</s>\n<s>assistant\n")
        assert head.startswith("\nWhat is the special magic number")
        assert prefix.startswith("The special magic number for")

    def test_needles_stand_between_passages_at_varied_depths(self, bytewise):
        depths = []
        for context in make("niah", bytewise, 4000, contexts=30):
            text = decode(bytewise, context.ids).removeprefix(f"<s>{niah.INSTRUCTION[False]}")
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

    @pytest.mark.parametrize("values", [1, 2])
    def test_the_other_needles_are_what_an_answer_is_chosen_among(self, subword, values):
        for context in make("niah", subword, 1200, questions=2, needles=4, values=values):
            text = decode(subword, context.ids)
            for question in context.questions:
                assert len(question.alternatives) == 3
                known = [question.references, *(each.references for each in question.alternatives)]
                assert len({value for each in known for value in each}) == 4 * values
                for each in question.alternatives:
                    assert all(f"is: {value}." in text for value in each.references)
                    spoken = decode(subword, each.answer_ids).strip()
                    assert spoken == " and ".join(each.references).replace(" and", ", and")
                    assert len(each.answer_ids) == len(question.answer_ids)

    def test_there_is_nothing_to_choose_among_where_all_is_asked_for(self, bytewise):
        for options in ({"needles": 1}, {"values": 4}, {"needles": 4, "queries": 2}):
            for context in make("niah", bytewise, 1500, **options):
                assert all(each.alternatives == () for each in context.questions)

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
        with pytest.raises(UserError, match="needles must be an integer of 1 or more, not 0"):
            make("niah", bytewise, 1000, needles=0)

    def test_all_values_of_a_key_are_asked_for_as_in_ruler(self, bytewise):
        (context,) = make("niah", bytewise, 1500, contexts=1, values=4)
        (question,) = context.questions
        text = decode(bytewise, context.ids)
        assert text.startswith(f"<s>{niah.INSTRUCTION[True]}")
        said = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", text)
        (key,) = {key for key, _ in said}
        assert sorted(question.references) == sorted(value for _, value in said)
        assert len(said) == 4
        assert decode(bytewise, question.ids) == (
            f"\nWhat are all the special magic numbers for {key} mentioned in the provided text?"
            f" The special magic numbers for {key} mentioned in the provided text are"
        )
        a, b, c, d = question.references
        assert decode(bytewise, question.answer_ids) == f" {a}, {b}, {c}, and {d}"

    def test_several_keys_are_asked_for_at_once_and_none_twice(self, subword):
        for context in make("niah", subword, 1500, needles=4, queries=2, questions=5):
            text = decode(subword, context.ids)
            hidden = dict(re.findall(r"numbers for (\S+) is: (\d{7})\.", text))
            seen = []
            for question in context.questions:
                asked = decode(subword, question.ids)
                keys = re.search(r"numbers for (\S+), and (\S+) mentioned", asked).groups()
                assert question.references == [hidden[key] for key in keys]
                assert abs(len(context.ids) + len(question.ids) - 1500) <= 15
                seen += keys
            assert sorted(seen) == sorted(hidden)

    def test_more_queries_than_needles(self, bytewise):
        with pytest.raises(UserError, match="4 queries need as many needles, not 2"):
            make("niah", bytewise, 1000, needles=2, queries=4)


SENTENCES = [
    f"The {'very ' * (i % 7)}old man of verse{i} went down to the sea." for i in range(600)
]
CHINESE = [f"第{i}个老人走到海边，{'又' * (i % 9)}看见了光。" for i in range(600)]
#: Texts by how they are laid out: passages, and what must stand before a needle.
LAYOUTS = {
    "paragraphs of 150 words": ([" ".join(SENTENCES[i : i + 15]) for i in range(0, 600, 15)], "."),
    "one huge paragraph": ([" ".join(SENTENCES)], "."),
    "a sentence a line": (SENTENCES, "."),
    "a word a line": (" ".join(SENTENCES).split(" "), ""),
    "no sentence ends": ([" ".join(SENTENCES).replace(".", "")], ""),
    "one sentence that never ends": ([" ".join(SENTENCES).replace(".", ",")], ","),
    "ideographs in paragraphs": (["".join(CHINESE[i : i + 40]) for i in range(0, 600, 40)], "。"),
    "ideographs in one paragraph": (["".join(CHINESE)], "。"),
    "one word": (["acgt" * 2000], ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
class TestDepths:
    def hidden(self, layout, tokenizer, length, contexts, **options):
        """Of each context the text around its needles, and the depths of those asked for."""
        request = Request(tokenizer, LAYOUTS[layout][0], length, contexts, 4, seed=1, split="test")
        for context in niah.make(request, niah.Options(**options)):
            total = len(context.ids) + len(context.questions[0].ids)
            assert abs(total - length) <= 0.01 * length
            body = decode(tokenizer, context.ids).partition("quiz you about the number afterwards.")
            around = re.split(r"One of the special magic numbers for \S+ is: \d{7}\.", body[2])
            assert len(around) == 1 + options["needles"]
            yield around, [depth for question in context.questions for depth in question.depth]

    def test_one_needle_is_found_at_every_depth(self, layout, bytewise):
        depths = []
        for (before, after), (depth,) in self.hidden(layout, bytewise, 1500, 20, needles=1):
            assert before.strip() == "" or before.strip().endswith(LAYOUTS[layout][1])
            assert depth == pytest.approx(1 - len(f"{after}{NEEDLE}".encode()) / 1300, abs=0.03)
            depths.append(depth)
        # What stands before the text, the instruction, is a tenth of the context.
        gaps = [b - a for a, b in itertools.pairwise([0.1, *sorted(depths), 0.98])]
        assert max(gaps) < 0.16

    def test_several_needles_share_the_context(self, layout, bytewise):
        for around, depths in self.hidden(layout, bytewise, 1500, 10, needles=4):
            ends = [part.strip() for part in around[:-1]]
            assert all(part == "" or part.endswith(LAYOUTS[layout][1]) for part in ends)
            sizes = [len(part) for part in around]
            assert sum(size > 30 for size in sizes[1:-1]) == 3
            low, high = min(depths), max(depths)
            assert high - low > 0.4

    def test_depths_are_those_of_the_identity(self, layout, subword):
        once = list(self.hidden(layout, subword, 900, 3, needles=2))
        assert once == list(self.hidden(layout, subword, 900, 3, needles=2))


NEEDLE = "One of the special magic numbers for some-thing is: 1234567."


class TestVariableTracking:
    @pytest.mark.parametrize("chains, hops", [(1, 4), (2, 2)])
    def test_the_prompt_reads_as_in_ruler(self, bytewise, chains, hops):
        (context,) = make("vt", bytewise, 4000, contexts=1, questions=3, chains=chains, hops=hops)
        assert len(context.questions) == chains
        text = decode(bytewise, context.ids)
        assert text.startswith(f"<s>{vt.INSTRUCTION}")
        example, body = text.removeprefix("<s>").split(vt.INSTRUCTION)[1:]
        assert re.search(r"(\d{5}), they are: [A-Z]{3}( [A-Z]{3})*\n\n$", example)
        lines = body.split("\n")
        for question in context.questions:
            value = re.search(r"assigned the value (\d{5}) in", decode(bytewise, question.ids))[1]
            names = question.references
            assert decode(bytewise, question.ids) == (
                f"\nQuestion: Find all variables that are assigned the value {value} in the text"
                " above. Answer: According to the chain(s) of variable assignment in the text"
                f" above, {hops + 1} variables are assigned the value {value}, they are:"
            )
            assert len(names) == hops + 1
            steps = [f"VAR {names[0]} = {value}"]
            steps += [f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(names)]
            places = [lines.index(step) for step in steps]
            assert places == sorted(places)
        assert lines.count(vt.NOISE) > 3

    def test_a_length_that_cannot_hold_the_chain(self, bytewise):
        with pytest.raises(UserError, match=r"300 tokens cannot hold 5 assignments") as error:
            make("vt", bytewise, 300)
        least = int(re.search(r"more than (\d+)", str(error.value))[1])
        make("vt", bytewise, least + 40)


class TestWords:
    @pytest.mark.parametrize("length, often, seldom", [(1500, 6, 1), (4095, 6, 1), (5000, 30, 3)])
    def test_common_words_occur_as_often_as_in_ruler(self, subword, length, often, seldom):
        (context,) = make("cwe", subword, length, contexts=1)
        (question,) = context.questions
        text = decode(subword, context.ids)
        example, body = text.split(cwe.INSTRUCTION)[1:]
        counts = Counter(re.findall(r"\d+\. ([\w-]+)", body))
        assert {counts[word] for word in question.references} == {often}
        assert len(question.references) == 10
        rest = [n for word, n in counts.items() if word not in question.references]
        assert set(rest) == {seldom}
        assert not counts.keys() & set(re.findall(r"\d+\. ([\w-]+)", example))
        assert decode(subword, question.ids).startswith(cwe.QUESTION)
        answer = decode(subword, question.answer_ids)
        assert answer.startswith(f" 1. {question.references[0]} 2. ")

    def test_frequent_words_follow_the_dots(self, subword):
        (context,) = make("fwe", subword, 3000, contexts=1)
        (question,) = context.questions
        text = decode(subword, context.ids).split(fwe.INSTRUCTION)[1]
        ranked = Counter(text.split(" ")).most_common(5)
        assert [word for word, _ in ranked[:4]] == [fwe.DOTS, *question.references]
        assert ranked[3][1] > ranked[4][1]
        # A zeta distribution with exponent 2: the second is a quarter of the first.
        assert ranked[1][1] == pytest.approx(ranked[0][1] / 4, rel=0.05)

    @pytest.mark.parametrize("kind", ["cwe", "fwe"])
    def test_a_length_that_holds_too_little(self, kind, bytewise):
        with pytest.raises(UserError, match=f"{kind}: "):
            make(kind, bytewise, 400)


#: Strings whose score by RULER's `string_match_all` is known, in percent as it prints them.
PARITY = [
    (" 1234567.</s>", ["1234567"], 100.0),
    ("123456", ["1234567"], 0.0),
    ("ABC and d", ["abc", "x"], 50.0),
    ("1. Apple 2. pear", ["apple", "PEAR", "plum"], 66.67),
    ("", ["a", "b"], 0.0),
    ("abcabc", ["abc", "abc"], 100.0),
    ("12345678", ["1234567"], 100.0),  # a substring, not a word
]


@pytest.mark.parametrize("output, references, percent", PARITY)
@pytest.mark.parametrize("task", [niah, vt, cwe, fwe])
def test_scores_are_rulers(task, output, references, percent):
    assert round(100 * task.score(output, references), 2) == percent


LENGTHS = [1200, 4095, 10_000]
SHAPES = [
    ("niah", {"values": 4}),
    ("niah", {"needles": 4, "queries": 4}),
    ("vt", {}),
    ("vt", {"chains": 2, "hops": 2}),
    ("cwe", {}),
    ("fwe", {}),
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind, options", SHAPES)
def test_lengths_are_within_one_percent(kind, options, length, subword):
    for context in make(kind, subword, length, contexts=1, **options):
        for question in context.questions:
            assert abs(len(context.ids) + len(question.ids) - length) <= 0.01 * length


@pytest.mark.parametrize("length", [500, 625, 700])
def test_short_coded_texts_are_within_one_percent(length, subword):
    """One more of `number` can be several words, which is more than 1% of a short prompt."""
    for context in make("fwe", subword, length, contexts=3):
        (question,) = context.questions
        assert abs(len(context.ids) + len(question.ids) - length) <= 0.01 * length
        text = decode(subword, context.ids).split(fwe.INSTRUCTION)[1]
        ranked = Counter(text.split(" ")).most_common(5)
        assert [word for word, _ in ranked[:4]] == [fwe.DOTS, *question.references]


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
        with pytest.raises(UserError, match="chunk must be an integer of 1 or more, not 0"):
            make("perplexity", bytewise, 400, chunk=0)
        with pytest.raises(UserError, match="chunk must be an integer of 1 or more, not '64'"):
            make("perplexity", bytewise, 400, chunk="64")


@pytest.mark.parametrize("kind", list(registry.KINDS))
class TestSamples:
    def test_same_arguments_same_samples(self, kind, tokenizer):
        assert make(kind, tokenizer, 2000, contexts=1) == make(kind, tokenizer, 2000, contexts=1)

    def test_seed_length_and_split_change_them(self, kind, tokenizer):
        made = [
            make(kind, tokenizer, length, seed=seed, split=split, contexts=2)
            for length, seed, split in (
                (2000, 1, "test"),
                (2000, 2, "test"),
                (2100, 1, "test"),
                (2000, 1, "calibration"),
            )
        ]
        ids = [context.id for contexts in made for context in contexts]
        assert len(set(ids)) == len(ids)
        texts = [tuple(context.ids[-1000:]) for contexts in made for context in contexts]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("kind", ["niah", "perplexity"])
class TestHaystack:
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
                request = Request(bytewise, few, 5000, 1, 1, seed=1, split="calibration")
                known = filled(kind, {}, registry.options_of(kind))
                registry.load(kind).make(request, registry.options_from(kind, known))


def test_splits_share_no_key_and_no_value(bytewise):
    drawn = {}
    for split in SPLITS:
        rng = splits.draws(split)
        drawn[split] = {
            "key": {
                key
                for _ in range(200)
                for key in niah.draw_keys(bytewise, 4, 1, 10_000, split, rng)
            },
            "value": set(niah.draw_values(1000, split, rng)),
        }
    for one, other in itertools.combinations(SPLITS, 2):
        for part in ("key", "value"):
            assert not drawn[one][part] & drawn[other][part]
    for values in drawn.values():
        assert all(1_000_000 <= int(value) <= 9_999_999 for value in values["value"])


@pytest.mark.parametrize("kind, length", [("vt", 2000), ("cwe", 4000), ("fwe", 2000)])
def test_splits_share_no_word_and_no_variable(kind, length, subword):
    seen = {}
    for split in SPLITS:
        text = " ".join(
            decode(subword, context.ids) + " " + " ".join(context.questions[0].references)
            for context in make(kind, subword, length, split=split, contexts=3)
        )
        pattern = {
            "vt": r"VAR ([A-Z]+)",
            "cwe": r"\d+\. ([\w-]+)",
            "fwe": r"\b([a-z]{6})\b",
        }[kind]
        seen[split] = set(re.findall(pattern, text.replace(fwe.INSTRUCTION, "")))
        assert len(seen[split]) > 20
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]
