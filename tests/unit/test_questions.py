"""Questions of a context together: what they give one by one, and what is measured of them."""

from types import SimpleNamespace

import pytest
import torch
from tiny import calibration_of, tiny_model

from kvbudget import UserError, attach
from kvbudget.cache.joined import join
from kvbudget.run import grouping, one_by_one, questions, together
from kvbudget.run.answer import Answer, Marker
from kvbudget.run.contexts import read_context
from kvbudget.run.runner import Runner
from kvbudget.sources.random import byte_tokenizer
from kvbudget.tasks import niah
from kvbudget.tasks.request import Alternative, Context, Question

KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
TOKENIZER = byte_tokenizer()
CONTEXT = TOKENIZER.encode("In the beginning God created the heaven and the earth. And the earth")
METHODS = {
    "full": {"policy": "full"},
    "h2o": {"policy": "h2o"},
    "streaming": {"policy": "streaming-llm", "positions": "cache"},
    "streaming-absolute": {"policy": "streaming-llm", "positions": "absolute"},
    "snapkv": {"policy": "snapkv", "safeguard": 0.2},
    "pyramidkv": {"policy": "pyramidkv"},
    "tova": {"policy": "tova"},
    "expected-attention": {"policy": "expected-attention"},
    "keydiff": {"policy": "keydiff"},
    "kvzip": {"policy": "kvzip"},
    "kvzip-plus": {"policy": "kvzip-plus"},
    "head-aware": {"policy": "head-aware", "safeguard": 0.5},
    "kvzap": {"policy": "kvzap"},
}


def model_of(kind: str = "llama") -> torch.nn.Module:
    model = tiny_model(kind)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(TOKENIZER), mean_resizing=False)
    return attach(model.requires_grad_(False))


def runner_of(model, method: str, bits: int | None = None, bounded: str = "context") -> Runner:
    entry = {"name": method, "bounded": bounded, **METHODS[method]}
    if bits:
        entry["bits"] = bits
    calibration = None
    if method in ("head-aware", "kvzap"):
        calibration = calibration_of(model)
    budget = None if method == "full" else 16
    return Runner(model, TOKENIZER, niah, entry, budget, calibration, None)


def asked(text: str, answer: str, others: tuple[str, ...] = (), room: int = 8) -> Question:
    def encode(text: str) -> list[int]:
        return TOKENIZER.encode(text, add_special_tokens=False)

    alternatives = tuple(Alternative([each], encode(each)) for each in others)
    return Question(text, encode(text), [answer], encode(answer), room, (), alternatives)


#: Of unlike lengths, with answers of unlike lengths, and more or less room to write.
QUESTIONS = [
    asked("Who?", " God", (" man", " the sea")),
    asked("What did God create in the beginning?", " heaven and earth", room=3),
    asked("When?", " first", (" last", " never"), room=12),
]


def both_ways(runner: Runner, asked: list[Question]) -> tuple[list[Answer], list[Answer]]:
    """Answers one by one and together, from the same compressed context."""
    with torch.inference_mode():
        read = read_context(runner, CONTEXT)
        state = read.cache.snapshot()
        alone, _ = one_by_one.ask(runner, read, asked)
        read.cache.restore(state)
        return alone, together.ask(runner, [read.cache], [asked])[0]


def assert_equal(alone: list[Answer], joint: list[Answer], asked: list[Question]) -> None:
    """Token for token, and likelihoods a token to 1e-5."""
    for one, other, question in zip(alone, joint, asked, strict=True):
        assert other.tokens == one.tokens
        assert len(one.log_likelihoods) == 1 + len(question.alternatives)
        lengths = [question.answer_ids, *(each.answer_ids for each in question.alternatives)]
        means = [
            [value / len(ids) for value, ids in zip(each.log_likelihoods, lengths, strict=True)]
            for each in (one, other)
        ]
        assert means[1] == pytest.approx(means[0], abs=1e-5, rel=0)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    """One that no test changes."""
    return model_of(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_together_they_are_answered_as_one_by_one(model, method):
    assert_equal(*both_ways(runner_of(model, method), QUESTIONS), QUESTIONS)


# Keys that move are not to be had in few bits; to what is stored, Qwen's layers are as Llama's.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "streaming"])
@pytest.mark.parametrize("model", ["llama", "gemma2", "gemma3_text"], indirect=True)
def test_together_in_few_bits_too(model, method):
    assert_equal(*both_ways(runner_of(model, method, 4), QUESTIONS), QUESTIONS)


def test_each_answer_ends_where_the_model_ends_it():
    model = model_of()
    before, _ = both_ways(runner_of(model, "h2o"), QUESTIONS)
    ending = before[2].tokens[4]  # of the longest answer
    model.generation_config.eos_token_id = [ending]
    alone, joint = both_ways(runner_of(model, "h2o"), QUESTIONS)
    assert_equal(alone, joint, QUESTIONS)
    for whole, cut in zip(before, joint, strict=True):
        stop = whole.tokens.index(ending) if ending in whole.tokens else len(whole.tokens)
        assert cut.tokens == whole.tokens[:stop]


def test_many_given_answers_are_read_in_parts(monkeypatch):
    runner = runner_of(model_of(), "h2o")
    alone, _ = both_ways(runner, QUESTIONS)
    monkeypatch.setattr(together, "_AT_ONCE", 20)
    passes = []
    read_rows = Runner.read_rows

    def counted(self, cache, rows, *args, **kwargs):
        passes.append(len(rows))
        return read_rows(self, cache, rows, *args, **kwargs)

    monkeypatch.setattr(Runner, "read_rows", counted)
    assert_equal(*both_ways(runner, QUESTIONS), QUESTIONS)
    assert_equal(alone, both_ways(runner, QUESTIONS)[1], QUESTIONS)
    assert passes[:8] == [3, 1, 1, 1, 1, 1, 1, 1]


#: Beginnings of unlike lengths, so that heads of several contexts keep unequally many tokens.
CONTEXTS = [CONTEXT, CONTEXT[:50], CONTEXT[:61], CONTEXT[3:]]
#: Unequally many of each context.
ASKED = [QUESTIONS, QUESTIONS[1:], QUESTIONS[:1], QUESTIONS[::2]]


def several(runner: Runner) -> tuple[list[Answer], list[Answer]]:
    """Answers of all contexts, asked one by one and all at once."""
    with torch.inference_mode():
        reads = [read_context(runner, ids) for ids in CONTEXTS]
        states = [read.cache.snapshot() for read in reads]
        alone = [
            one_by_one.ask(runner, read, own)[0] for read, own in zip(reads, ASKED, strict=True)
        ]
        for read, state in zip(reads, states, strict=True):
            read.cache.restore(state)
        joint = together.ask(runner, [read.cache for read in reads], ASKED)
    assert list(map(len, joint)) == list(map(len, ASKED))
    return [each for own in alone for each in own], [each for own in joint for each in own]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [None, 4])
def test_so_are_those_of_several_contexts(kind, method, bits):
    if bits and method == "streaming":
        bits, method = 4, "streaming-absolute"
    runner = runner_of(model_of(kind), method, bits)
    runner.budget = None if method == "full" else "30%"
    assert_equal(*several(runner), [each for own in ASKED for each in own])


def test_so_are_those_of_a_target_that_is_numbered_anew():
    runner = runner_of(model_of(), "full")
    runner.method["phi"] = 9
    assert_equal(*several(runner), [each for own in ASKED for each in own])


def test_what_a_given_answer_foretells_is_not_decoded_again(monkeypatch):
    """A model that answers as given needs one step: for what comes after the answer."""
    runner = runner_of(model_of(), "h2o")
    question = QUESTIONS[0]
    ((answer,), _) = both_ways(runner, [question])
    text = TOKENIZER.decode(answer.tokens[:-1])
    likely = Question(**vars(question) | {"answer_ids": answer.tokens[:-1], "references": [text]})
    passes = []
    read_rows = Runner.read_rows

    def counted(self, cache, rows, *args, **kwargs):
        passes.append([len(row) for row in rows])
        return read_rows(self, cache, rows, *args, **kwargs)

    monkeypatch.setattr(Runner, "read_rows", counted)
    alone, joint = both_ways(runner, [likely])
    assert joint[0].tokens == alone[0].tokens == answer.tokens
    room = likely.max_new_tokens
    lengths = [len(likely.answer_ids), *(len(each.answer_ids) for each in likely.alternatives)]
    assert passes == [[len(likely.ids)], lengths, [room]]


def test_a_context_is_joined_alone_compressed_and_with_nothing_on_top():
    runner = runner_of(model_of(), "h2o")
    with torch.inference_mode():
        cache = read_context(runner, CONTEXT).cache
        runner.read(cache, QUESTIONS[0].ids)
        always = read_context(runner_of(runner.model, "h2o", bounded="always"), CONTEXT).cache
        for refused in (cache, always, runner.cache(10)):
            with pytest.raises(UserError, match="read and compressed, alone in a cache made with"):
                join([refused], [0], torch.float32)


def test_contexts_that_are_joined_are_held_once():
    runner = runner_of(model_of(), "h2o")
    with torch.inference_mode():
        cache = read_context(runner, CONTEXT).cache
        join([cache], [0], torch.float32)
    assert cache.allocated_bytes() == 0


def test_how_many_contexts_are_taken_together(monkeypatch):
    model = model_of()
    contexts = [Context(str(place), CONTEXT, QUESTIONS) for place in range(5)]
    assert questions.at_once(runner_of(model, "h2o", bounded="always"), contexts) == 1
    assert questions.at_once(runner_of(model, "h2o"), contexts) == 64 // 3
    held = len(CONTEXT) * 4 * 3 * 2 * 16 * 4  # layers, KV heads, keys and values in float32
    monkeypatch.setattr(grouping, "BYTES", 2 * held)
    assert questions.at_once(runner_of(model, "h2o"), contexts) == 2
    monkeypatch.setattr(grouping, "BYTES", held - 1)
    assert questions.at_once(runner_of(model, "h2o"), contexts) == 1


def test_a_gpu_takes_more_contexts_together():
    assert grouping.contexts_at_once(5, 2**28) == 2
    assert grouping.contexts_at_once(5, 2**28, "cuda") == 8
    assert grouping.contexts_at_once(5, 2**10, "cuda") == 64 // 5


def test_a_step_that_is_timed_is_one_of_a_sequence_alone(monkeypatch):
    """And it leaves no trace."""
    runner, timed = runner_of(model_of(), "h2o"), []

    class Watch:
        def seconds(self) -> float:
            return 1.0

    def seen(self, cache, ids):
        timed.append(len(ids))
        return read(self, cache, ids)

    read = Runner.read
    with torch.inference_mode():
        cache = read_context(runner, CONTEXT).cache
        monkeypatch.setattr(together, "Stopwatch", Watch)
        monkeypatch.setattr(Runner, "read", seen)
        assert together.timed(runner, cache, QUESTIONS[1]) == [1.0] * 4
    assert timed == [len(QUESTIONS[1].ids), 1, 1, 1, 1]
    assert cache.holds_context


@torch.inference_mode()
def test_a_peak_is_one_of_a_context_alone():
    runner = runner_of(model_of(), "h2o")
    contexts = [Context("first", CONTEXT, QUESTIONS), Context("second", CONTEXT, QUESTIONS)]
    first, second = questions.run(runner, contexts, [None, None])
    assert first["memory"]["peak_rss_bytes"] > 0
    assert second["memory"]["peak_rss_bytes"] is None
    assert min(each["timing"]["prefill_s"] for each in (first, second)) > 0
    assert [len(each["timing"]["decode_s"]) for each in (first, second)] == [4, 4]
    assert first["samples"][0]["nll"] == pytest.approx(second["samples"][0]["nll"])


# What is measured.


@torch.inference_mode()
def test_what_stands_on_top_is_reported_and_no_part_of_the_budget():
    model = model_of()
    context = Context("c", CONTEXT, QUESTIONS)
    (result,) = questions.run(runner_of(model, "h2o"), [context], [None])
    _, joint = both_ways(runner_of(model, "h2o"), QUESTIONS)
    pairs = zip(QUESTIONS, joint, strict=True)
    tokens = sum(len(each.ids) + len(answer.tokens) for each, answer in pairs) / len(QUESTIONS)
    memory = result["memory"]
    assert memory["cache_tokens_on_top"] == pytest.approx(tokens)
    heads = 4 * 3  # layers, KV heads
    assert memory["cache_bytes_on_top"] == pytest.approx(tokens * heads * 2 * 16 * 4)
    assert memory["cache_bytes_planned"] == 16 * heads * 2 * 16 * 4
    assert [sample["id"] for sample in result["samples"]] == [each.id for each in QUESTIONS]
    (bounded,) = questions.run(runner_of(model, "h2o", bounded="always"), [context], [None])
    assert memory.keys() - bounded["memory"].keys() == {"cache_tokens_on_top", "cache_bytes_on_top"}
    planned, allocated = ("cache_bytes_planned", "cache_bytes_allocated")
    assert memory[planned] == bounded["memory"][planned]
    sums = (16 + 1) * heads * 4  # of the budget and the stride: nothing will be evicted by them
    assert memory[allocated] == bounded["memory"][allocated] - sums


def test_a_question_evicts_what_it_asks_about_only_where_all_is_bounded():
    model = model_of()
    losses = {}
    for bounded in ("context", "always"):
        with torch.inference_mode():
            context = Context("c", CONTEXT, QUESTIONS[1:2])
            runner = runner_of(model, "h2o", bounded=bounded)
            (result,) = questions.run(runner, [context], [None])
        losses[bounded] = result["samples"][0]["nll"]
    assert abs(losses["context"] - losses["always"]) > 1e-3


def test_kvzip_needs_no_window_for_what_follows():
    """All heads but the sinks compete for the whole budget where it is the context's."""
    model = model_of()
    kept = {}
    for bounded in ("context", "always"):
        with torch.inference_mode():
            read = read_context(runner_of(model, "kvzip", bounded=bounded), CONTEXT)
        kept[bounded] = [count for layer in read.slots for count in layer]
    assert sum(kept["context"]) == sum(kept["always"]) == 16 * 12
    assert min(kept["always"]) >= 4 + 8
    assert 4 <= min(kept["context"]) < 4 + 8


def sample_of(output: str, likelihoods: list[float], others: tuple[str, ...] = ("222", "333")):
    """What is noted of an answer to a question whose reference is 111."""
    tokenizer = SimpleNamespace(decode=lambda tokens, skip_special_tokens: output)
    question = asked("Which?", "111", others)
    marker = Marker(tokenizer, niah, "float32")
    return marker.sample(Context("context", [], [question]), question, Answer([], likelihoods), 8)


def test_any_needle_the_right_needle_and_none():
    right, wrong, none = (
        sample_of(output, [-1.0, -2.0, -3.0]) for output in ("is 111.", "is 222.", "is 123.")
    )
    assert (right["score"], right["any"]) == (1.0, True)
    assert (wrong["score"], wrong["any"]) == (0.0, True)
    assert (none["score"], none["any"]) == (0.0, False)
    assert {sample["choices"] for sample in (right, wrong, none)} == {3}


@pytest.mark.parametrize(
    ("likelihoods", "chosen"),
    [([-1.0, -2.0, -3.0], 1.0), ([-2.0, -1.0, -3.0], 0.0), ([-2.0, -3.0, -2.0], 0.0)],
)
def test_a_choice_goes_to_the_likeliest_and_a_tie_is_lost(likelihoods, chosen):
    sample = sample_of("", likelihoods)
    assert sample["choice"] == chosen
    assert sample["nll"] == -likelihoods[0] / len("111")


def test_without_alternatives_there_is_no_choice():
    sample = sample_of("is 111.", [-1.0], others=())
    assert (sample["any"], sample["choice"], sample["choices"]) == (None, None, None)


def test_a_likelihood_that_is_no_number_is_named():
    with pytest.raises(UserError, match=r"answer to Which\? is nan in float32"):
        sample_of("", [-1.0, float("nan"), -1.0])
