"""Ours beside kvpress: the same weights and prompts, the same tokens kept, the same logits.

`docs/peers.md` says how each definition is mapped.
"""

from pathlib import Path

import peers
import pytest
import torch

from kvbudget import attach, make_cache
from kvbudget.prompts import encode, prompt_frame
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import Random

pytestmark = pytest.mark.real

PYTHON, ROOT = peers.required(), peers.ROOT
TOKENS, BUDGET = 560, 112
OF_WINDOW = {"window_size": 32, "kernel_size": 7}
ADAKV = {"safeguard": 0.2}
#: Name → our method and its options, and the press.
PAIRS = {
    "StreamingLLM": ("streaming-llm", {"positions": "absolute"}, {"press": "StreamingLLMPress"}),
    "H2O": ("h2o", {}, {"press": "H2OPress"}),
    "SnapKV": ("snapkv", {"pooling": "mean"}, {"press": "SnapKVPress", "arguments": OF_WINDOW}),
    "PyramidKV": ("pyramidkv", {"pooling": "mean"}, {"press": "PyramidPress"}),
    "TOVA": ("tova", {}, {"press": "TOVAPress"}),
    "KeyDiff": ("keydiff", {}, {"press": "KeyDiffKeeping"}),
    "ExpectedAttention": ("expected-attention", {}, {"press": "ExpectedAttentionKeeping"}),
    "ExpectedAttention with epsilon": (
        "expected-attention",
        {"epsilon": 0.01},
        {"press": "ExpectedAttentionKeeping", "arguments": {"epsilon": 0.01}},
    ),
    "KVzip": ("kvzip", {}, {"press": "KVzipPress"}),
    "KVzip+": (
        "kvzip-plus",
        {},
        {"press": "KVzipPress", "arguments": {"kvzip_plus_normalization": True}},
    ),
    "AdaKV over SnapKV": (
        "snapkv",
        {"pooling": "mean", **ADAKV},
        {"press": "SnapKVPress", "arguments": OF_WINDOW, **ADAKV},
    ),
    "AdaKV over KeyDiff": ("keydiff", ADAKV, {"press": "KeyDiffKeeping", **ADAKV}),
    "AdaKV over ExpectedAttention": (
        "expected-attention",
        {"epsilon": 0.01, **ADAKV},
        {"press": "ExpectedAttentionKeeping", "arguments": {"epsilon": 0.01}, **ADAKV},
    ),
}


class Pair:
    """A model that both read, with what kvpress has made of it."""

    def __init__(self, directory: Path, ids: list[int], tolerance: float, strays: float) -> None:
        self.model, self.tokenizer = load(directory, "float32", "cpu")
        attach(self.model)
        self.ids, self.question, self.answer = ids[:TOKENS], ids[TOKENS:-4], ids[-4:]
        self.tolerance, self.strays = tolerance, strays
        self.theirs = dict(zip(PAIRS, self._ask(directory), strict=True))

    def _ask(self, directory: Path) -> list[dict]:
        question = {"ids": self.question, "answers": [self.answer], "max_new_tokens": 0}
        context = {"ids": self.ids, "budget": BUDGET, "questions": [question]}
        asked = []
        for method, options, press in PAIRS.values():
            if method == "pyramidkv":
                cache = make_cache(self.model, method, BUDGET, prompt_tokens=TOKENS, **options)
                budgets = [own for own, *_ in cache.plan.budgets()]
                press = {**press, "arguments": {**OF_WINDOW, "budgets": budgets}}
            press = {"arguments": {}, "safeguard": 1.0, **press}
            asked.append({"press": press, "contexts": [context], "details": True})
        return peers.ask(PYTHON, directory, asked)

    @torch.inference_mode()
    def ours(self, method: str, options: dict) -> tuple[list[list[list[int]]], torch.Tensor]:
        """Positions kept, and the logits after the question and each token of the answer."""
        options = {"bounded": "context", "prompt_tokens": TOKENS, **options}
        cache = make_cache(self.model, method, BUDGET, **options)
        self.model(torch.tensor([self.ids]), past_key_values=cache)
        cache.finish(self.model, self.tokenizer, self.ids)
        kept = [[own.tolist() for own in layer.kept_positions()] for layer in cache.budgeted]
        after = torch.tensor([self.question + self.answer])
        logits = self.model(after, past_key_values=cache).logits[0]
        return kept, logits[-len(self.answer) - 1 :]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Pair:
    """A random Llama."""
    directory = tmp_path_factory.mktemp("parity") / "tiny"
    download("tiny", Random(), directory)
    generator = torch.Generator().manual_seed(0)
    vocabulary = load(directory, "float32", "cpu")[0].config.vocab_size
    ids = torch.randint(3, vocabulary, (TOKENS + 12,), generator=generator).tolist()
    return Pair(directory, ids, tolerance=1e-4, strays=0)


@pytest.fixture(scope="module")
def smollm2() -> Pair:
    """SmolLM2, where the default study has left it."""
    directory = ROOT / "results/models/smollm2-135m"
    if not directory.is_dir():
        pytest.skip(
            "SmolLM2 is not there; snakemake --cores 1 results/models/smollm2-135m/source.json"
        )
    _, tokenizer = load(directory, "float32", "cpu")
    # kvpress takes the first tokens for the chat template's, whatever they are.
    opening, _ = prompt_frame(tokenizer)
    ids = opening + encode(tokenizer, (ROOT / "LICENSE").read_text())
    # Near ties may fall otherwise on another processor: one token in a thousand.
    return Pair(directory, ids[: TOKENS + 20], tolerance=0.01, strays=1e-3)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_the_same_tokens_are_kept_and_the_logits_are_the_same(model, name, request):
    pair = request.getfixturevalue(model)
    method, options, _ = PAIRS[name]
    kept, logits = pair.ours(method, options)
    theirs = pair.theirs[name]
    strays = total = 0
    for mine, their in zip(kept, theirs["kept"], strict=True):
        for own, other in zip(mine, their, strict=True):
            strays += len(set(own) ^ set(other))
            total += len(own)
    assert total == BUDGET * len(kept) * len(kept[0])
    assert strays <= pair.strays * total
    expected = torch.tensor(theirs["answers"][0]["logits"])
    torch.testing.assert_close(logits, expected, rtol=0, atol=pair.tolerance)
