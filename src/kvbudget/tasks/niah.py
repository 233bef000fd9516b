"""Needles in a haystack, after RULER (Hsieh et al., 2024; NVIDIA/RULER, scripts/data/synthetic).

Instruction, needle, question and answer prefix are RULER's words for numeric values; so is the
number of digits. The haystack is running text, needles stand between its passages, and keys are
an adjective and a noun. Each question asks for one needle (RULER's `niah_single` with one needle,
`niah_multikey` with more), and several questions may be asked of one context.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from kvbudget.errors import UserError
from kvbudget.tasks import base
from kvbudget.tasks.base import Context, Question

DEFAULTS = {"needles": 1}

INSTRUCTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the number afterwards.\n"
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = "\nWhat is the special magic number for {key} mentioned in the provided text?"
ANSWER_PREFIX = "The special magic number for {key} mentioned in the provided text is"

#: Tokens beyond the reference that a model may write before and after the number.
_SPARE_TOKENS = 4
#: Passages on each side of the estimate among which the haystack may be cut to length.
_SPARE_PASSAGES = 8

_ADJECTIVES = (
    "amber ample azure bold brave brisk calm candid clever cobalt crisp curly daring dusty eager"
    " early fancy fluffy frosty gentle giddy glossy golden grumpy hasty hollow humble icy jolly"
    " keen lively lucky mellow merry misty modest narrow nimble noisy odd pale placid polite proud"
    " quick quiet rapid rustic salty shiny silent sleepy slim smooth snowy spicy steady sturdy"
    " sunny tidy tiny vivid warm wary witty zesty"
)
# Dealt out to the splits in turn: a key of one split cannot occur in another.
_NOUNS = (
    "acorn anchor apron arcade badger bagel balcony banjo barrel beacon blanket bobcat bonnet"
    " bottle bucket button cabin cactus camera canoe canyon carpet castle cellar cereal cherry"
    " cinema coffee comet compass copper cricket curtain dancer dolphin domino donkey engine"
    " falcon feather fiddle fossil galaxy garlic geyser ginger glacier goblet guitar hammer harbor"
    " hazel helmet hockey island jacket jungle kettle kitten ladder lagoon lantern lemon lizard"
    " locket lobster magnet mango marble meadow mitten muffin napkin needle nickel noodle oyster"
    " paddle panda parcel parrot pebble pencil pepper piano pickle pillow pirate planet pocket"
    " poplar potato puddle puzzle rabbit radish raven ribbon rocket saddle sailor salmon sandal"
    " saucer scooter shovel sparrow spinach sponge tablet teapot ticket tiger toffee tomato tractor"
    " trumpet tulip tunnel turtle velvet violin waffle walnut walrus wizard yogurt zipper"
)


@dataclass(frozen=True)
class Needle:
    key: str
    value: str

    def __str__(self) -> str:
        return NEEDLE.format(key=self.key, value=self.value)


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
) -> list[Context]:
    """Contexts of `options["needles"]` needles each, and questions about them.

    Context and question together have `length` tokens, within 1%. There is one question a needle:
    a context gets `min(questions, needles)` of them, each for another key. The context is the
    same whatever is asked, and whatever the number of questions.

    Raises:
        UserError: `length` cannot hold the needles, or the haystack is too short.
    """
    options = base.options_of(options, DEFAULTS)
    if options["needles"] < 1:
        raise UserError("niah: needles must be at least 1")
    text = base.split_passages(passages, split)
    made = []
    for index in range(contexts):
        identity = f"niah-{options['needles']}/{split}/L{length}/s{seed}/{index}"
        rng = base.draws(identity)
        needles = draw_needles(tokenizer, options["needles"], length, split, rng)
        asked = [_question_ids(tokenizer, needle.key) for needle in needles]
        # Within the slack of `draw_needles` they are equally long; aim at the middle.
        middle = (max(map(len, asked)) + min(map(len, asked))) // 2
        start = base.start_passage(text, index, contexts, rng) if text else 0
        ids = _context_ids(
            tokenizer, base.passages_from(text, start), needles, length - middle, length, rng
        )
        chosen = base.draws(identity, "questions").sample(
            range(len(needles)), min(questions, len(needles))
        )
        made.append(
            Context(
                id=identity,
                ids=ids,
                questions=[
                    _question(tokenizer, f"{identity}/q{i}", needles[i], asked[i]) for i in chosen
                ],
            )
        )
    return made


def score(output: str, references: list[str]) -> float:
    """RULER's `string_match_all`: the share of references found in the output."""
    return base.string_match(output, references)


def draw_needles(
    tokenizer: PreTrainedTokenizerBase, count: int, length: int, split: str, rng: random.Random
) -> list[Needle]:
    """Needles of distinct keys and values that only this split can draw.

    Questions about them differ by at most half a percent of `length` tokens, so that one context
    fits all of them.
    """
    splits = list(base.SPLITS)
    nouns = _NOUNS.split()[splits.index(split) :: len(splits)]
    keys = [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in nouns]
    rng.shuffle(keys)
    first = len(_question_ids(tokenizer, keys[0]))
    slack = int(base.TOLERANCE / 4 * length)
    alike = []
    for key in keys:
        if abs(len(_question_ids(tokenizer, key)) - first) <= slack:
            alike.append(key)
        if len(alike) == count:
            break
    else:
        raise UserError(f"niah: {count} needles of one length are not to be had; ask for fewer")
    # Seven digits, the remainder by the number of splits tells the split.
    low, high = 1_000_000 // len(splits) + 1, 9_999_999 // len(splits)
    values = [n * len(splits) + splits.index(split) for n in rng.sample(range(low, high), count)]
    return [Needle(key, str(value)) for key, value in zip(alike, values, strict=True)]


def _context_ids(
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[str],
    needles: Sequence[Needle],
    target: int,
    length: int,
    rng: random.Random,
) -> list[int]:
    """Opening, instruction and haystack with the needles in it: `target` tokens, nearly."""
    head, _ = base.prompt_frame(tokenizer)

    def encode_body(body: str) -> list[int]:
        return head + base.encode(tokenizer, INSTRUCTION + body)

    bare = len(encode_body(" ".join(map(str, needles)) + " "))
    if bare >= target:
        raise UserError(
            f"niah: a prompt of {length} tokens cannot hold {len(needles)} needles and the"
            f" question; with this tokenizer it takes more than {bare + length - target}"
        )
    whole = base.passages_within(tokenizer, passages, target - bare)
    # A needle stands before the passage of its number; the last passage is there to be cut.
    spots = range(max(1, whole))
    places = rng.sample(spots, len(needles)) if len(spots) >= len(needles) else [0] * len(needles)
    spare = _SPARE_PASSAGES + whole // 50
    last = max(*places, whole - spare)
    pieces: list[str] = []
    for number in range(last + 1):
        pieces += [str(n) for place, n in zip(places, needles, strict=True) if place == number]
        if number < last:
            pieces.append(passages[number])
    front = "".join(f"{piece} " for piece in pieces)
    words = " ".join(passages[last : whole + spare]).split(" ")
    rest = base.fit(
        lambda end: len(encode_body(front + end)), words, target, int(base.TOLERANCE / 4 * length)
    )
    return encode_body(front + rest)


def _question_ids(tokenizer: PreTrainedTokenizerBase, key: str) -> list[int]:
    question, prefix = QUESTION.format(key=key), ANSWER_PREFIX.format(key=key)
    if not tokenizer.chat_template:
        return base.encode(tokenizer, f"{question} {prefix}")
    _, tail = base.prompt_frame(tokenizer)
    return base.encode(tokenizer, question) + tail + base.encode(tokenizer, prefix)


def _question(
    tokenizer: PreTrainedTokenizerBase, identity: str, needle: Needle, ids: list[int]
) -> Question:
    answer = base.encode(tokenizer, f" {needle.value}")
    return Question(
        id=identity,
        ids=ids,
        references=[needle.value],
        answer_ids=answer,
        max_new_tokens=len(answer) + _SPARE_TOKENS,
    )
