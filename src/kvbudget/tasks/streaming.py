"""Translation of a passage while it is read: wait-k, on a parallel text, with every method's cache.

A passage is a run of whole verses whose source, with the prompt's opening, has `length` tokens; the
source alone is held to the budget. It is translated twice, each time from the first word on. The
reference is written (teacher forcing), for its likelihood and for what the model would have said in
each place; then the model writes its own, greedily. Words are what blanks part. Nothing is scored
as right or wrong: BLEU is of all passages together, and aggregation takes it from the outputs.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from kvbudget.cache.streaming import StreamingCache
from kvbudget.errors import UserError
from kvbudget.measure import memory
from kvbudget.measure.latency import average_lagging, length_adaptive_average_lagging
from kvbudget.measure.time import Stopwatch
from kvbudget.tasks import base
from kvbudget.text import pairs
from kvbudget.translation import Translation, Translator

if TYPE_CHECKING:
    from kvbudget.cell import Runner

#: `k`: words that are read before the first is written; at least as many as a passage has is
#: ordinary generation. `phi`: first position of the target, a number or `auto`, which is where the
#: source ends. `source`, `target`: the languages, for the prompt.
DEFAULTS = {"k": 3, "phi": "auto", "source": "English", "target": "French"}
#: Most tokens of a translation, as a multiple of its reference's.
ROOM = 1.2
#: How vocabularies write the blank with which a word begins: byte-level, SentencePiece, plain.
_BLANKS = ("Ġ", "Ċ", "▁", " ", "\n")


@dataclass(frozen=True)
class Passage(base.Context):
    """A passage to translate; `ids` is the source, after the prompt's opening.

    Attributes:
        source, target: token ids of each word, the opening with the first of the source.
        prompt: what comes between them.
        reference: the translation as text.
        k, phi: options of the task.
    """

    source: list[list[int]]
    target: list[list[int]]
    prompt: list[int]
    reference: str
    k: int
    phi: int | str


def make(
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[str],
    *,
    length: int,
    contexts: int,
    questions: int,
    seed: int,
    split: str,
    options: Mapping[str, Any],
) -> list[base.Context]:
    """Passages whose source has `length` tokens, within 1%; the same for every `k` and `phi`.

    `passages` are those of a parallel text. `questions` has no say.

    Raises:
        UserError: the text is not parallel, or no run of its verses has that length.
    """
    options = base.options_of(options, DEFAULTS)
    text = [pair for pair in base.split_passages(pairs(passages), split) if all(pair)]
    word_ids = cache(lambda word: base.encode(tokenizer, f" {word}"))
    opening, prompt = _prompt(tokenizer, options["source"], options["target"])
    sizes = [sum(len(word_ids(word)) for word in source.split()) for source, _ in text]
    made = []
    for index in range(contexts):
        identity = f"streaming/{split}/L{length}/s{seed}/{index}"
        start = base.start_passage(text, index, contexts, base.draws(identity)) if text else 0
        first, end = _run(base.passages_from(sizes, start), length, len(opening))
        verses = base.passages_from(text, start)[first:end]
        source, reference = (" ".join(side) for side in zip(*verses, strict=True))
        words = [[word_ids(word) for word in side.split()] for side in (source, reference)]
        words[0][0] = opening + words[0][0]
        made.append(
            Passage(
                identity,
                ids=[token for word in words[0] for token in word],
                questions=[],
                source=words[0],
                target=words[1],
                prompt=prompt,
                reference=reference,
                k=options["k"],
                phi=options["phi"],
            )
        )
    return made


def run(runner: "Runner", passage: Passage) -> dict:
    """Translate a passage: samples, memory and timing, as `Runner.run` gives them.

    Memory is that of the source where nothing else is said. `prefill_s` is the time to the first
    word. A token has no time of its own, as most of a step waits for, or reads, the source.
    """
    limit = int(ROOM * sum(map(len, passage.target)))
    begins, stops = _marks(runner)
    memory.mark_peak()
    translator = _translator(runner, passage, limit)
    watch = Stopwatch()
    nll, predictions, prefill_s = 0.0, [], None
    for logits, word in zip(
        translator.follow(passage.prompt, passage.target), passage.target, strict=True
    ):
        prefill_s = prefill_s or watch.seconds()
        predictions += logits.argmax(dim=-1).tolist()
        wanted = torch.tensor(word, device=logits.device)
        nll += cross_entropy(logits.float(), wanted, reduction="sum").item()
    nll = runner.finite(nll / len(predictions), passage.id)
    cache = translator.cache
    held = {
        **runner.cache_bytes(cache.source, len(passage.ids)),
        "cache_bytes_target": cache.target_bytes(),
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "peak_cuda_bytes": memory.peak_cuda_bytes(),
    }
    slots = [[len(kept) for kept in layer.kept_positions()] for layer in cache.source.budgeted]
    written = _translator(runner, passage, limit).write(passage.prompt, begins, stops, limit)
    sample = {
        "id": f"{passage.id}/translation",
        "context_id": passage.id,
        "prompt_tokens": len(passage.ids),
        "budget_tokens": cache.source.plan.tokens(),
        "score": None,
        "nll": nll,
        "output": runner.tokenizer.decode(written.ids, skip_special_tokens=True).strip(),
        "reference": [passage.reference],
        "predictions": predictions,
        **_lagging(written, passage),
    }
    timing = {"prefill_s": prefill_s, "decode_s": []}
    return {"samples": [sample], "memory": held, "timing": timing, "slots": slots}


def score(output: str, references: list[str]) -> None:
    """None: BLEU is of a corpus, not of a passage."""
    return None


def _prompt(
    tokenizer: PreTrainedTokenizerBase, source: str, target: str
) -> tuple[list[int], list[int]]:
    """Token ids before the source's first word, and between its last and the target's first."""
    opening, end = base.prompt_frame(tokenizer)
    ask = f"Translate this {source} text into {target}.\n\n{source}:"
    answer = f"{target}:" if end else f"\n\n{target}:"
    return opening + base.encode(tokenizer, ask), end + base.encode(tokenizer, answer)


def _run(sizes: Sequence[int], length: int, opening: int) -> tuple[int, int]:
    """The first run of verses that has `length` tokens together with the opening, within 1%."""
    ends = [0, *accumulate(sizes)]
    slack = base.TOLERANCE * length
    for first, before in enumerate(ends):
        wanted = before + length - opening
        end = bisect_left(ends, wanted - slack)
        if end < len(ends) and ends[end] <= wanted + slack:
            return first, end
    raise UserError(
        f"the haystack is too short for {length} tokens of source in whole passages (within 1%); "
        "use another length, or a longer parallel text"
    )


def _translator(runner: "Runner", passage: Passage, limit: int) -> Translator:
    cache = StreamingCache(runner.cache(len(passage.ids)))
    target = len(passage.prompt) + max(limit, sum(map(len, passage.target)))
    first = len(passage.ids) if passage.phi == "auto" else passage.phi
    longest = runner.model.config.max_position_embeddings
    if first + target > longest:
        raise UserError(
            f"the translation would reach position {first + target}, and the model has {longest}; "
            "use a shorter length or a smaller phi"
        )
    return Translator(runner.model, cache, passage.source, passage.k, passage.phi)


def _marks(runner: "Runner") -> tuple[Tensor, Tensor]:
    """Which tokens begin a word, and which end a text: `(vocabulary,)` each."""
    begins = torch.zeros(runner.model.config.vocab_size, dtype=torch.bool)
    stops = begins.clone()
    for token, number in runner.tokenizer.get_vocab().items():
        begins[number] = token.startswith(_BLANKS)
    stops[list(runner.stops())] = True
    if not begins.any():
        raise UserError("the tokenizer does not mark where words begin, so there is no wait-k")
    return begins.to(runner.model.device), stops.to(runner.model.device)


def _lagging(written: Translation, passage: Passage) -> dict[str, float | None]:
    """AL and LAAL in words, as the reference has so many; None where nothing was written."""
    if not written.delays:
        return {"al": None, "laal": None}
    lengths = (written.delays, len(passage.source), len(passage.target))
    return {
        "al": average_lagging(*lengths),
        "laal": length_adaptive_average_lagging(*lengths),
    }
