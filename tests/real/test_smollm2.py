"""The real SmolLM2-135M out of the package that ships it, with nothing evicted."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from kvbudget import attach, make_cache
from kvbudget.cache.prefill import Prefill, difference, record
from kvbudget.cache.streaming import StreamingCache
from kvbudget.calibration.prompts import mixture
from kvbudget.policies.make import signal_class
from kvbudget.run.samples import samples_of
from kvbudget.run.translation import Translator
from kvbudget.sources import integrity
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import parse
from kvbudget.study.config import read
from kvbudget.study.expand import expand
from kvbudget.tasks import niah, streaming
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Request

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "workflow" / "models.lock.yaml"
KEY = "smollm2-135m"

LENGTH = 500
# English enough for a haystack; the study's own text need not be there for this test.
PASSAGES = [
    f"On day {word} of the {season} the {who} went down to the {place}, and found there {what}."
    for word in ("one", "two", "three", "four", "five", "six", "seven")
    for season in ("spring", "summer", "autumn", "winter")
    for who in ("farmer", "teacher", "miller", "old sailor")
    for place in ("river", "market", "harbor")
    for what in ("nothing at all", "a letter from his brother")
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """The model of the default study if it is there, else a download of its own."""
    shared = ROOT / "results" / "models" / KEY
    if shared.is_dir():
        return shared
    spec = yaml.safe_load((ROOT / "config.yaml").read_text())["models"][KEY]
    target = tmp_path_factory.mktemp("models") / KEY
    download(KEY, parse(KEY, spec), target)
    return target


def test_it_is_the_model_of_the_lock_file_and_works(directory):
    verified = integrity.verify(KEY, directory, LOCK)
    assert verified["checks"]["lock"] == "matches"
    shape = {"layers": 30, "query_heads": 9, "kv_heads": 3, "head_dim": 64, "context": 8192}
    assert {name: verified[name] for name in shape} == shape
    assert verified["chat_template"] is True
    size = yaml.safe_load((ROOT / "config.yaml").read_text())["models"][KEY]["size"]
    assert size["parameters"] == verified["checks"]["parameters"]
    assert {name: size[name] for name in shape if name != "context"} == {
        name: shape[name] for name in shape if name != "context"
    }


@pytest.mark.parametrize(
    "overlay", ["default", *sorted(p.stem for p in (ROOT / "workflow" / "studies").glob("*.yaml"))]
)
def test_every_task_fits_the_lengths_that_a_study_gives_it(overlay, directory, tmp_path):
    planned = expand(read(overlay, ROOT), ROOT)
    text = tmp_path / "text.txt"
    verses = [f"{passage}\tLe jour {i}.\n" for i, passage in enumerate(4 * PASSAGES)]
    text.write_text("".join(verses))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for spec in {(cell.task, cell.length): cell.spec for cell in planned.cells}.values():
        (context,) = samples_of(
            spec | {"samples": {"contexts": 1, "questions": 1}}, tokenizer, text
        )
        wanted = round(tasks.kind(spec["task"]["kind"]).prompt_share * spec["length"])
        # A passage to translate has no questions, and says itself when it does not fit.
        for question in context.questions:
            tokens = len(context.ids) + len(question.ids)
            assert abs(tokens - wanted) <= 0.01 * wanted, spec["task"]
    for each in planned.calibrations:
        asked = {name: each.spec[name] for name in ("tasks", "length", "seed")}
        assert mixture(tokenizer, verses, **asked, contexts=1)


@torch.no_grad()
def test_reading_all_before_writing_is_ordinary_generation(directory):
    model, tokenizer = load(directory, "float32", "cpu")
    verses = [f"{passage}\tLe jour {i}." for i, passage in enumerate(PASSAGES)]
    request = Request(tokenizer, verses, 200, contexts=1, questions=1, seed=1, split="test")
    (passage,) = streaming.make(request, streaming.Options(k=1000))
    prompt = torch.tensor([passage.ids + passage.prompt])
    stock = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = stock.sequences[0, prompt.shape[1] :].tolist()
    attach(model)

    def translator(k: int) -> Translator:
        cache = StreamingCache(make_cache(model, "full", prompt_tokens=len(passage.ids)))
        return Translator(model, cache, passage.source, k, "auto")

    no_token = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    assert translator(1000).write(passage.prompt, no_token, no_token, limit=20).ids == ids
    logits = torch.cat(list(translator(1000).follow(passage.prompt, [ids])))
    torch.testing.assert_close(logits, torch.cat(stock.logits), rtol=0, atol=1e-3)
    early = next(translator(1).follow(passage.prompt, [ids]))
    assert (early - logits).abs().max() > 1


@torch.no_grad()
def test_the_full_cache_finds_single_needles(directory):
    # float32: exact on every CPU, and faster than bfloat16 on those without such arithmetic.
    model, tokenizer = load(directory, "float32", "cpu")
    request = Request(tokenizer, PASSAGES, LENGTH, contexts=4, questions=1, seed=1, split="test")
    contexts = niah.make(request, niah.Options())
    scores, losses = [], []
    for context in contexts:
        (question,) = context.questions
        prompt = torch.tensor([context.ids + question.ids])
        assert abs(prompt.shape[1] - LENGTH) <= 0.01 * LENGTH
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=question.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        answer = tokenizer.decode(output.sequences[0, prompt.shape[1] :])
        scores.append(niah.score(answer, question.references))
        first = torch.log_softmax(output.logits[0][0].float(), -1)
        losses.append(-first[question.answer_ids[0]].item())
    assert sum(scores) / len(scores) >= 0.75
    assert all(math.isfinite(loss) for loss in losses)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("method", "bits"), [("h2o", None), ("streaming-llm", None), ("snapkv", 4)]
)
def test_a_context_that_is_adopted_is_the_one_that_is_read(directory, tmp_path, method, bits):
    """To the last bit, on a model of the usual size."""
    model, tokenizer = load(directory, "float32", "cpu")
    attach(model)
    request = Request(tokenizer, PASSAGES, LENGTH, contexts=1, questions=1, seed=1, split="test")
    ((ids, question),) = ((c.ids, c.questions[0].ids) for c in niah.make(request, niah.Options()))
    signals = [signal_class(name) for name in ("received:Attention", "received:Window")]
    record(model, ids, signals, tmp_path / "0.safetensors", {})
    read, adopted = (
        make_cache(model, method, "20%", bits=bits, prompt_tokens=len(ids)) for _ in range(2)
    )
    last = model(torch.tensor([ids]), past_key_values=read, logits_to_keep=1).logits[0, -1]
    prefill = Prefill(tmp_path / "0.safetensors", {})
    assert torch.equal(prefill.adopt(adopted, ids, model.device), last)
    assert difference(read, adopted) is None
    one, other = (
        model(torch.tensor([question]), past_key_values=cache).logits for cache in (read, adopted)
    )
    assert torch.equal(one, other)
