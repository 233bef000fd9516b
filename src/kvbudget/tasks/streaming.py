"""Translation of a passage while it is read: wait-k, on a parallel text, with every method's cache.

A passage is a run of whole verses whose source, with the prompt's opening, has `length` tokens; the
source alone is held to the budget. It is translated twice, each time from the first word on. The
reference is written (teacher forcing), for its likelihood and for what the model would have said in
each place; then the model writes its own, greedily. Words are what blanks part. Nothing is scored
as right or wrong: BLEU is of all passages together, and aggregation takes it from the outputs.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.options import auto, count, field, text
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import splits
from kvbudget.tasks.passages import pairs, passages_from, start_passage
from kvbudget.tasks.request import TOLERANCE, Context, Request


@dataclass(frozen=True)
class Options:
    """How a passage is translated."""

    k: int = field(
        count(
            3,
            "Words that are read before the first is written; at least as many as a passage has is "
            "ordinary generation.",
        )
    )
    phi: int | str = field(auto("First position of the target; auto is where the source ends."))
    source: str = field(text("English", "Language of the source, for the prompt."))
    target: str = field(text("French", "Language of the target, for the prompt."))


@dataclass(frozen=True)
class Passage(Context):
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


def make(request: Request, options: Options) -> list[Context]:
    """Passages whose source has `length` tokens, within 1%; the same for every `k` and `phi`.

    `passages` are those of a parallel text. `questions` has no say.

    Raises:
        UserError: the text is not parallel, or no run of its verses has that length.
    """
    verses = pairs(splits.split_passages(request.passages, request.split))
    verses = [pair for pair in verses if all(pair)]
    word_ids = cache(lambda word: prompts.encode(request.tokenizer, f" {word}"))
    opening, prompt = _prompt(request.tokenizer, options.source, options.target)
    sizes = [sum(len(word_ids(word)) for word in source.split()) for source, _ in verses]
    made = []
    for index, identity in enumerate(request.identities("streaming")):
        rng = splits.draws(identity)
        start = start_passage(verses, index, request.contexts, rng) if verses else 0
        first, end = _run(passages_from(sizes, start), request.length, len(opening))
        chosen = passages_from(verses, start)[first:end]
        source, reference = (" ".join(side) for side in zip(*chosen, strict=True))
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
                k=options.k,
                phi=options.phi,
            )
        )
    return made


def score(output: str, references: list[str]) -> None:
    """None: BLEU is of a corpus, not of a passage."""
    return None


def _prompt(tokenizer: Tokenizer, source: str, target: str) -> tuple[list[int], list[int]]:
    """Token ids before the source's first word, and between its last and the target's first."""
    opening, end = prompts.prompt_frame(tokenizer)
    ask = f"Translate this {source} text into {target}.\n\n{source}:"
    answer = f"{target}:" if end else f"\n\n{target}:"
    return opening + prompts.encode(tokenizer, ask), end + prompts.encode(tokenizer, answer)


def _run(sizes: Sequence[int], length: int, opening: int) -> tuple[int, int]:
    """The first run of verses that has `length` tokens together with the opening, within 1%."""
    ends = [0, *accumulate(sizes)]
    slack = TOLERANCE * length
    for first, before in enumerate(ends):
        wanted = before + length - opening
        end = bisect_left(ends, wanted - slack)
        if end < len(ends) and ends[end] <= wanted + slack:
            return first, end
    raise UserError(
        f"the haystack is too short for {length} tokens of source in whole passages (within 1%); "
        "use another length, or a longer parallel text"
    )
