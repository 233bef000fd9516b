"""Translation while reading: wait-k against one masked pass, bounded sources, refusals."""

import json
from itertools import accumulate, pairwise
from pathlib import Path

import homes
import pytest
import torch
from specs import task
from tiny import VOCABULARY, tiny_calibration, tiny_model
from transformers import DynamicCache

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.streaming import StreamingCache
from kvbudget.run.cell import run_cell
from kvbudget.run.translation import Translator
from kvbudget.sources.haystack import read_passages
from kvbudget.sources.random import byte_tokenizer
from kvbudget.sources.text import build
from kvbudget.tasks import streaming
from kvbudget.tasks.latency import wait_k
from kvbudget.tasks.request import Request

PROMPT = [5, 6, 7]
BEGINS = torch.arange(VOCABULARY) % 3 == 0
STOPS = torch.arange(VOCABULARY) == 2
METHODS = {
    "h2o": {},
    "streaming-llm": {"positions": "absolute"},
    "snapkv": {"safeguard": 0.2},
    "keydiff": {},
    "head-aware": {"safeguard": 0.5, "calibration": tiny_calibration(4, 3, 6)},
}


def words(count: int, seed: int) -> list[list[int]]:
    """Words of one to four tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 5, (count,), generator=generator).tolist()
    return [torch.randint(8, VOCABULARY, (n,), generator=generator).tolist() for n in sizes]


SOURCE, TARGET = words(20, 1), words(15, 2)


def flat(words: list[list[int]]) -> list[int]:
    return [token for word in words for token in word]


def translator(model, source=SOURCE, k=3, phi="auto", method="full", budget=None, **options):
    tokens = len(flat(source))
    cache = make_cache(model, method, budget, prompt_tokens=tokens, **options)
    return Translator(model, StreamingCache(cache), source, k, phi)


@torch.no_grad()
def oracle(model, source, target, k, phi) -> torch.Tensor:
    """Logits that predict each token of the target, by one pass of the stock model under a mask."""
    ends = [0, *accumulate(map(len, source))]
    tokens = ends[-1]
    # The word that each token of the target, shifted by one, predicts.
    predicted = [0] * len(PROMPT) + [i for i, word in enumerate(target) for _ in word][1:]
    ids = flat(source) + PROMPT + flat(target)[:-1]
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    for row, word in enumerate(predicted):
        mask[tokens + row, ends[min(k + word, len(source))] : tokens] = False
    start = tokens if phi == "auto" else phi
    positions = [*range(tokens), *range(start, start + len(predicted))]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits = model(
        torch.tensor([ids]),
        attention_mask=torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None],
        position_ids=torch.tensor([positions]),
        use_cache=False,
    ).logits[0]
    model.set_attn_implementation(before)
    return logits[tokens + len(PROMPT) - 1 :]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "phi3"])
@pytest.mark.parametrize("k, phi", [(1, "auto"), (3, 0), (7, 200), (99, 5)])
@torch.no_grad()
def test_wait_k_step_by_step_equals_one_masked_pass(kind, k, phi):
    model = attach(tiny_model(kind))
    ours = torch.cat(list(translator(model, k=k, phi=phi).follow(PROMPT, TARGET)))
    expected = oracle(model, SOURCE, TARGET, k, phi)
    assert ours.shape == (len(flat(TARGET)), VOCABULARY)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("k", [len(SOURCE), 1000])
@torch.no_grad()
def test_reading_all_first_is_ordinary_generation(kind, k):
    model = attach(tiny_model(kind))
    prompt = torch.tensor([flat(SOURCE) + PROMPT])
    model.set_attn_implementation("sdpa")
    stock = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=DynamicCache(config=model.config),
        max_new_tokens=40,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    attach(model)
    stops = torch.zeros_like(STOPS)
    written = translator(model, k=k).write(PROMPT, BEGINS, stops, limit=40)
    assert written.ids == stock.sequences[0, prompt.shape[1] :].tolist()
    assert set(written.delays) == {len(SOURCE)}
    follow = translator(model, k=k).follow(PROMPT, [written.ids])
    torch.testing.assert_close(
        torch.cat(list(follow)), torch.cat(stock.logits), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("k", [1, 3, 7])
@torch.no_grad()
def test_what_is_written_is_what_the_masked_pass_would_write(k):
    """Each token is the best one given what may be read then, and words end where they should."""
    model = attach(tiny_model())
    written = translator(model, k=k).write(PROMPT, BEGINS, STOPS, limit=60)
    starts = [i for i, token in enumerate(written.ids) if i == 0 or BEGINS[token]]
    target = [written.ids[a:b] for a, b in pairwise([*starts, len(written.ids)])]
    assert written.delays == wait_k(k, len(SOURCE), len(target))
    assert len(target) > 3
    logits = oracle(model, SOURCE, target, k, "auto")
    unread = [written.delays[i] < len(SOURCE) for i, word in enumerate(target) for _ in word]
    for i, token in enumerate(written.ids):
        allowed = torch.ones_like(STOPS)
        if unread[i]:
            allowed &= ~STOPS
        if i in starts[1:] and written.delays[starts.index(i) - 1] < len(SOURCE):
            allowed &= BEGINS | STOPS
        assert logits[i].masked_fill(~allowed, -torch.inf).argmax() == token


@torch.no_grad()
def test_the_end_of_the_text_waits_for_the_end_of_the_source():
    model = attach(tiny_model())
    everything = torch.ones_like(STOPS)  # would end at once
    written = translator(model, k=1).write(PROMPT, BEGINS, everything & ~BEGINS, limit=100)
    assert written.delays == wait_k(1, len(SOURCE), len(written.ids))
    assert len(written.ids) >= len(SOURCE) - 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 99])
@torch.no_grad()
def test_the_kept_source_never_exceeds_the_budget(method, k):
    model = attach(tiny_model())
    stream = translator(model, k=k, method=method, budget=16, **METHODS[method])
    cache = stream.cache.source
    limits = cache.plan.budgets()
    written = 0
    for logits in stream.follow(PROMPT, TARGET):
        assert logits.isfinite().all()
        written += logits.shape[0]
        kept = [[len(head) for head in layer.kept_positions()] for layer in cache.budgeted]
        assert all(sum(row) <= sum(own) for row, own in zip(kept, limits, strict=True))
        assert stream.cache.layers[0].written == len(PROMPT) + written - 1
    if k == 99:  # else a head may have room for more than was read
        assert sum(map(sum, kept)) == 16 * 4 * 3
    newest = len(flat(SOURCE[: k + len(TARGET) - 1])) - 1
    assert all(newest in head for layer in cache.budgeted for head in layer.kept_positions())


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_budget_of_the_whole_source_changes_nothing(method):
    model = attach(tiny_model())
    tokens = len(flat(SOURCE))
    full = torch.cat(list(translator(model).follow(PROMPT, TARGET)))
    stream = translator(model, method=method, budget=tokens, **METHODS[method])
    torch.testing.assert_close(
        torch.cat(list(stream.follow(PROMPT, TARGET))), full, rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_a_source_in_eight_bits_changes_little():
    model = attach(tiny_model())
    exact = torch.cat(list(translator(model).follow(PROMPT, TARGET)))
    stored = torch.cat(list(translator(model, bits=8).follow(PROMPT, TARGET)))
    torch.testing.assert_close(stored, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(stored, exact)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_target_attends_to_what_is_kept_and_to_itself(method, softcap):
    """One layer, fed with noise, against the textbook formula on the raw keys and values."""
    source = make_cache(attach(tiny_model()), method, 16, prompt_tokens=60, **METHODS[method])
    layer = StreamingCache(source).layers[1]
    generator = torch.Generator().manual_seed(3)

    def noise(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, 16, generator=generator)

    raw = {"source": [noise(3, 0), noise(3, 0)], "target": [noise(3, 0), noise(3, 0)]}
    for read, write in [(20, 0), (0, 3), (1, 1), (4, 2), (0, 1), (5, 1), (1, 4)]:
        query, new = noise(6, read + write), (noise(3, read + write), noise(3, read + write))
        layer.arriving = read
        layer.update(*new)
        output = layer.attend(query, 0.25, softcap, None)[:, :, read:]
        for part, cut in (("source", slice(read)), ("target", slice(read, None))):
            raw[part] = [
                torch.cat((old, own[:, :, cut]), 2) for old, own in zip(raw[part], new, strict=True)
            ]
        held = raw["target"][0].shape[2]
        for head, kept in enumerate(layer.source.kept_positions()):
            keys, values = (
                torch.cat((s[0, head, kept], t[0, head]))
                for s, t in zip(raw["source"], raw["target"], strict=True)
            )
            own = query[0, 2 * head : 2 * head + 2, read:]
            scores = 0.25 * own @ keys.T
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            sees = torch.ones(write, len(kept) + held, dtype=torch.bool)
            sees = sees.tril(len(kept) + held - write)
            expected = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ values
            torch.testing.assert_close(output[0, 2 * head : 2 * head + 2], expected)


def test_what_cannot_stream_is_refused():
    model = attach(tiny_model())
    with pytest.raises(UserError, match="use positions: absolute"):
        StreamingCache(make_cache(model, "streaming-llm", 16))
    with pytest.raises(UserError, match="phi is an option of the streaming task"):
        StreamingCache(make_cache(model, "full", phi=0))
    with pytest.raises(UserError, match="layers with a sliding window"):
        StreamingCache(make_cache(attach(tiny_model("gemma3_text")), "full"))
    stream = translator(model)
    with pytest.raises(UserError, match="one sequence at a time"):
        model(torch.ones(2, 3, dtype=torch.long), past_key_values=stream.cache)


# The task and its cells.

VERSES = [
    f"{'w' * (1 + i * i % 11)}{' word' * (3 + i % 7)} {i}.\tmots{' mot' * (2 + i % 5)} {i}."
    for i in range(400)
]


def passages(length: int = 400, verses=VERSES, **options):
    request = Request(byte_tokenizer(), verses, length, 3, 1, seed=1, split="test")
    return streaming.make(request, streaming.Options(**options))


def test_passages_are_whole_verses_of_the_length_asked_for():
    tokenizer = byte_tokenizer()
    for length in (200, 333, 400, 1500):
        for passage in passages(length):
            assert abs(len(passage.ids) - length) <= 0.01 * length
            assert passage.ids == flat(passage.source)
            source, target = tokenizer.decode(passage.ids), tokenizer.decode(flat(passage.target))
            assert source.startswith("<s>Translate this English text into French.\n\nEnglish: w")
            assert tokenizer.decode(passage.prompt) == "\n\nFrench:"
            assert target == f" {passage.reference}"
            numbers = [
                [int(w[:-1]) for w in t.split() if w[:-1].isdigit()] for t in (source, target)
            ]
            assert numbers[0] == numbers[1]
            assert numbers[0] == list(range(numbers[0][0], numbers[0][-1] + 1))
            assert numbers[0][0] >= 160


def test_passages_are_the_same_for_every_k():
    one, other = passages(k=1), passages(k=7, phi=0)
    assert [p.ids for p in one] == [p.ids for p in other]
    assert [p.id for p in one] == [p.id for p in other]
    assert [(p.k, p.phi) for p in one + other] == [(1, "auto")] * 3 + [(7, 0)] * 3


def test_an_untranslated_verse_is_left_out():
    verses = [verse if i % 10 else f"alone {i}\t" for i, verse in enumerate(VERSES)]
    assert all("alone" not in byte_tokenizer().decode(p.ids) for p in passages(verses=verses))


def test_bad_texts_and_options_are_named():
    with pytest.raises(UserError, match="not a parallel text"):
        passages(verses=["one column"])
    with pytest.raises(UserError, match="too short for 4000 tokens"):
        passages(4000, verses=VERSES[:40])
    with pytest.raises(UserError, match="phi must be auto or an integer of 0 or more, not '0'"):
        task("wait_3", "streaming", phi="0")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model, verified, and a parallel text."""
    home = homes.with_model(tmp_path_factory.mktemp("streaming"))
    sides = zip(*(verse.split("\t") for verse in VERSES), strict=True)
    for name, side in zip(("en", "fr"), sides, strict=True):
        (home / f"{name}.txt").write_text("\n".join(side))
    spec = {"source": "file", "path": str(home / "en.txt"), "translation": str(home / "fr.txt")}
    build(spec, home / "text.txt")
    assert read_passages(home / "text.txt") == VERSES
    return home


def cell(home: Path, out: Path, method: dict, budget, **options) -> dict:
    spec = {
        "model": "tiny",
        "dtype": "float32",
        "seed": 1,
        "split": "test",
        "haystack": "parallel",
        "task": task("wait_3", "streaming", **options),
        "length": 300,
        "method": method,
        "budget": budget,
        "samples": {"contexts": 2, "questions": 1},
    }
    return run_cell(homes.cell(home, out, spec))


def test_the_record_of_a_cell(home, tmp_path):
    method = {"name": "h2o", "policy": "h2o"}
    record = cell(home, tmp_path / "h2o.json", method, "20%")
    assert json.loads((tmp_path / "h2o.json").read_text()) == record
    for sample in record["samples"]:
        assert abs(sample["prompt_tokens"] - 300) <= 3
        assert sample["budget_tokens"] == round(0.2 * sample["prompt_tokens"])
        assert 3 < sample["nll"] < 8
        assert len(sample["predictions"]) == len(sample["reference"][0]) + 1
        assert sample["al"] > 0
        assert sample["laal"] >= sample["al"]
        assert sample["score"] is None
    memory = record["memory"]
    assert memory["cache_bytes_planned"] == pytest.approx(
        0.2 * memory["cache_bytes_full"], rel=0.01
    )
    assert memory["cache_bytes_target"] > 0
    assert record["timing"]["decode_ms_per_token"] is None


def test_what_reaches_beyond_the_model_is_refused(home, tmp_path):
    with pytest.raises(UserError, match="would reach position"):
        cell(home, tmp_path / "far.json", {"name": "full", "policy": "full"}, None, phi=4000)
