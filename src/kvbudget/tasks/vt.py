"""Variable tracking, after RULER (Hsieh et al., 2024; NVIDIA/RULER, variable_tracking.py).

`VAR A = 12345`, `VAR B = VAR A`, ...: a chain of assignments stands in RULER's repeated noise, in
order but apart, and the question asks for all variables that have the value. The wording is
RULER's, and so is the solved example in front (of at most a quarter of the prompt here, as RULER's
500 tokens would fill a short one). Several questions need several chains.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.options import count, field
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import scoring, splits
from kvbudget.tasks.passages import closest, fit
from kvbudget.tasks.request import Context, Question, Request


@dataclass(frozen=True)
class Options:
    """RULER's `num_chains` and `num_hops`."""

    chains: int = field(count(1, "Chains of assignments in a context."))
    hops: int = field(count(4, "Steps of a chain, which has one variable more."))


INSTRUCTION = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
ANSWER_PREFIX = (
    "Answer: According to the chain(s) of variable assignment in the text above, {number} variables"
    " are assigned the value {value}, they are:"
)

#: Letters of a variable's name, in the text and in the solved example.
_LETTERS, _EXAMPLE_LETTERS = 5, 3
_EXAMPLE_TOKENS = 500
_NEW_TOKENS = 30


def make(request: Request, options: Options) -> list[Context]:
    """Contexts of `options.chains` chains, and a question for each, at most `questions`.

    Context and question together have `length` tokens, within 1%. The haystack has no say.

    Raises:
        UserError: `length` cannot hold the chains.
    """
    return [
        _context(request, identity, options)
        for identity in request.identities(f"vt-{options.chains}-{options.hops}")
    ]


def _context(request: Request, identity: str, options: Options) -> Context:
    tokenizer, length, split = request.tokenizer, request.length, request.split
    chains, hops = options.chains, options.hops
    rng = splits.draws(identity)
    example = _example(tokenizer, hops, min(_EXAMPLE_TOKENS, length // 4), split, rng)
    drawn = _draw(chains, hops, _LETTERS, split, rng)
    asked = [_question(tokenizer, identity, *chain) for chain in drawn.items()]
    head, _ = prompts.prompt_frame(tokenizer)

    def encode_body(body: str) -> list[int]:
        return head + prompts.encode(tokenizer, example + body)

    room = length - len(asked[0].ids)
    if (bare := len(encode_body(_hide(drawn, 0, identity)))) >= room:
        raise UserError(
            f"vt: a prompt of {length} tokens cannot hold {chains * (hops + 1)} assignments, the"
            f" example and the question; with this tokenizer it takes more than"
            f" {bare + length - room}"
        )
    lines = _lines(lambda text: len(encode_body(text)), drawn, room, identity)
    body = _hide(drawn, lines, identity)
    # What is missing to the length: less than two lines.
    last = fit(
        lambda text: len(prompts.encode(tokenizer, text)),
        " ".join([NOISE] * 3),
        room - len(encode_body(body)),
        request.slack,
    )
    return Context(identity, encode_body(body + last), asked[: request.questions])


def score(output: str, references: list[str]) -> float:
    """The share of references found in the output."""
    return scoring.string_match_all(output, references)


def _draw(
    chains: int, hops: int, letters: int, split: str, rng: random.Random
) -> dict[str, list[str]]:
    """`{value: variables}` that only this split can draw."""
    alphabet = string.ascii_uppercase
    values = rng.sample(splits.own(split, range(10_000, 100_000)), chains)
    numbers = rng.sample(splits.own(split, range(len(alphabet) ** letters)), chains * (hops + 1))
    names = iter([splits.spell(number, alphabet, letters) for number in numbers])
    return {str(value): [next(names) for _ in range(hops + 1)] for value in values}


def _hide(chains: Mapping[str, Sequence[str]], lines: int, identity: str) -> str:
    """Instruction and `lines` lines of noise; before some of them the assignments of the chains,
    each chain in its order."""
    rng = splits.draws(identity, "places")
    statements = [
        [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]
        for value, names in chains.items()
    ]
    total = sum(map(len, statements))
    places = iter(rng.sample(range(max(lines, total)), total))
    before: dict[int, str] = {}
    for chain in statements:
        before |= dict(zip(sorted(next(places) for _ in chain), chain, strict=True))
    text = INSTRUCTION
    for line in range(max(lines, total)):
        text += f"{before[line]}\n" if line in before else ""
        text += f"{NOISE}\n" if line < lines else ""
    return text


def _lines(
    count: Callable[[str], int], chains: Mapping[str, Sequence[str]], target: int, identity: str
) -> int:
    """Lines of noise that surely fit into `target` tokens; a line has a token a word or more."""
    most = target // len(NOISE.split())
    nearest = closest(lambda lines: count(_hide(chains, lines, identity)), target, most)
    return max(0, nearest - 1)


def _example(tokenizer: Tokenizer, hops: int, tokens: int, split: str, rng: random.Random) -> str:
    """One chain with question and answer, of at most `tokens` tokens where that can be had."""
    chain = _draw(1, hops, _EXAMPLE_LETTERS, split, rng)
    ((value, names),) = chain.items()
    answer = f"{' '.join(_wording(value, names))} {' '.join(names)}\n\n"
    room = max(0, tokens - len(prompts.encode(tokenizer, answer)))
    lines = _lines(lambda text: len(prompts.encode(tokenizer, text)), chain, room, value)
    return _hide(chain, lines, value).rstrip("\n") + answer


def _wording(value: str, names: Sequence[str]) -> tuple[str, str]:
    """Question and prefix of the answer."""
    return QUESTION.format(value=value), ANSWER_PREFIX.format(number=len(names), value=value)


def _question(tokenizer: Tokenizer, identity: str, value: str, names: Sequence[str]) -> Question:
    answer = prompts.encode(tokenizer, f" {' '.join(names)}")
    asked = prompts.ask(tokenizer, *_wording(value, names))
    return Question.with_room(f"{identity}/{value}", asked, list(names), answer, _NEW_TOKENS)
