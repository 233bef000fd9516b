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
from typing import Any

from transformers import PreTrainedTokenizerBase

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.tasks import base

#: `k`: words that are read before the first is written; at least as many as a passage has is
#: ordinary generation. `phi`: first position of the target, a number or `auto`, which is where the
#: source ends. `source`, `target`: the languages, for the prompt.
DEFAULTS = {"k": 3, "phi": "auto", "source": "English", "target": "French"}


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
    text = [pair for pair in base.split_passages(base.pairs(passages), split) if all(pair)]
    word_ids = cache(lambda word: prompts.encode(tokenizer, f" {word}"))
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


def score(output: str, references: list[str]) -> None:
    """None: BLEU is of a corpus, not of a passage."""
    return None


def _prompt(
    tokenizer: PreTrainedTokenizerBase, source: str, target: str
) -> tuple[list[int], list[int]]:
    """Token ids before the source's first word, and between its last and the target's first."""
    opening, end = prompts.prompt_frame(tokenizer)
    ask = f"Translate this {source} text into {target}.\n\n{source}:"
    answer = f"{target}:" if end else f"\n\n{target}:"
    return opening + prompts.encode(tokenizer, ask), end + prompts.encode(tokenizer, answer)


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
