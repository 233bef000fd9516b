"""A passage is translated while it is read: with the reference, then in the model's own words."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kvbudget.cache.streaming import StreamingCache
from kvbudget.errors import UserError
from kvbudget.run import memory
from kvbudget.run.answer import finite
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.run.translation import Translation, Translator
from kvbudget.tasks.latency import average_lagging, length_adaptive_average_lagging
from kvbudget.tasks.streaming import Passage

#: Most tokens of a translation, as a multiple of its reference's.
ROOM = 1.2
#: How vocabularies write the blank with which a word begins: byte-level, SentencePiece, plain.
_BLANKS = ("Ġ", "Ċ", "▁", " ", "\n")


def at_once(runner: Runner, passages: Sequence[Passage]) -> int:
    """Passages that are translated together: one, as its source is read meanwhile."""
    return 1


def run(runner: Runner, passages: Sequence[Passage], shared: Sequence[None]) -> list[dict]:
    """Translate passages, of which nothing is recorded: `questions.run` says what it gives."""
    return [_translate(runner, passage) for passage in passages]


def _translate(runner: Runner, passage: Passage) -> dict:
    """Samples, memory and timing of a passage.

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
    nll = finite(nll / len(predictions), passage.id, runner.model.dtype)
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


def _translator(runner: Runner, passage: Passage, limit: int) -> Translator:
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


def _marks(runner: Runner) -> tuple[Tensor, Tensor]:
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
