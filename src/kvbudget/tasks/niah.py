"""Needles in a haystack, after RULER (Hsieh et al., 2024; NVIDIA/RULER, scripts/data/synthetic).

Instruction, needle, question and answer prefix are RULER's words for numeric values; so is the
number of digits. The haystack is running text, and keys are an adjective and a noun. Needles stand
at ends of sentences, each at random in a part of the context of its own (`kvbudget.tasks.depths`);
RULER draws from forty evenly spread depths. RULER's four tasks are options of this one, several
questions may be asked of one context, and no question asks for a key that another one asks for:

    niah_single      one key, one value
    niah_multikey    needles: 4                 one of several keys is asked for
    niah_multivalue  values: 4                  a key has several values, all are asked for
    niah_multiquery  needles: 4, queries: 4     several keys are asked for at once
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.options import count, field
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import depths, scoring, splits
from kvbudget.tasks.passages import fit, passages_from, passages_within, start_passage
from kvbudget.tasks.request import TOLERANCE, Alternative, Context, Question, Request


@dataclass(frozen=True)
class Options:
    """How many needles there are, and how many are asked for."""

    needles: int = field(count(1, "Keys of a context."))
    values: int = field(count(1, "Values of each key."))
    queries: int = field(count(1, "Keys that one question asks for."))


# RULER's wording for one answer and for several.
INSTRUCTION = {
    False: "A special magic number is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the number afterwards.\n",
    True: "Some special magic numbers are hidden within the following text. Make sure to memorize"
    " it. I will quiz you about the numbers afterwards.\n",
}
NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = {
    False: "\nWhat is the special magic number for {keys} mentioned in the provided text?",
    True: "\nWhat are all the special magic numbers for {keys} mentioned in the provided text?",
}
ANSWER_PREFIX = {
    False: "The special magic number for {keys} mentioned in the provided text is",
    True: "The special magic numbers for {keys} mentioned in the provided text are",
}

#: Tokens beyond the reference that a model may write around each number.
_SPARE_TOKENS = 4
#: Passages beyond the estimate among which the haystack may be cut to length.
_SPARE_PASSAGES = 8
#: Letters after the last needle for each of them, to make up for tokens that they part.
_SPARE_LETTERS = 8

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


def make(request: Request, options: Options) -> list[Context]:
    """Contexts of `needles` keys with `values` values each, and questions for `queries` keys each.

    Context and question together have `length` tokens, within 1%. A context gets as many
    questions as its keys allow, at most `questions`. The context is the same whatever is asked,
    and whatever the number of questions.

    Raises:
        UserError: `length` cannot hold the needles, or the haystack is too short.
    """
    count, values, queries = options.needles, options.values, options.queries
    tokenizer, length, split = request.tokenizer, request.length, request.split
    if queries > count:
        raise UserError(f"niah: {queries} queries need as many needles, not {count}")
    many = values * queries > 1
    text = splits.split_passages(request.passages, split)
    name = f"niah-{count}-{values}-{queries}"
    made = []
    for index, identity in enumerate(request.identities(name)):
        rng = splits.draws(identity)
        keys = draw_keys(tokenizer, count, queries, length, split, rng)
        numbers = iter(draw_values(count * values, split, rng))
        hidden = {key: [next(numbers) for _ in range(values)] for key in keys}
        needles = [NEEDLE.format(key=key, value=value) for key in keys for value in hidden[key]]
        # The keys make all questions about equally long.
        room = length - len(_ask(tokenizer, keys[:queries], many))
        start = start_passage(text, index, request.contexts, rng) if text else 0
        wanted = depths.spread(len(needles), identity.rpartition("/")[0], index)
        ids, found = _context_ids(
            request,
            passages_from(text, start),
            INSTRUCTION[many],
            dict(zip(needles, wanted, strict=True)),
            room,
        )
        depth = {
            key: [found[NEEDLE.format(key=key, value=value)] for value in hidden[key]]
            for key in keys
        }
        asked = splits.draws(identity, "questions").sample(keys, count)
        groups = [asked[i * queries : (i + 1) * queries] for i in range(count // queries)]
        made.append(
            Context(
                id=identity,
                ids=ids,
                questions=[
                    _question(tokenizer, f"{identity}/{'+'.join(group)}", group, hidden, depth)
                    for group in groups[: request.questions]
                ],
            )
        )
    return made


def score(output: str, references: list[str]) -> float:
    """The share of references found in the output."""
    return scoring.string_match_all(output, references)


def draw_keys(
    tokenizer: Tokenizer,
    count: int,
    queries: int,
    length: int,
    split: str,
    rng: random.Random,
) -> list[str]:
    """Distinct keys that only this split can draw.

    Questions about `queries` of them differ by at most a quarter of a percent of `length` tokens
    from each other's mean, so that one context fits all of them.
    """
    nouns = splits.own(split, _NOUNS.split())
    keys = [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in nouns]
    rng.shuffle(keys)
    first = len(_ask(tokenizer, keys[:1], False))
    slack = int(TOLERANCE / 4 * length) // queries
    alike = []
    for key in keys:
        if abs(len(_ask(tokenizer, [key], False)) - first) <= slack:
            alike.append(key)
        if len(alike) == count:
            return alike
    raise UserError(f"niah: {count} needles of one length are not to be had; ask for fewer")


def draw_values(count: int, split: str, rng: random.Random) -> list[str]:
    """Distinct numbers of seven digits that only this split can draw."""
    return list(map(str, rng.sample(splits.own(split, range(1_000_000, 10_000_000)), count)))


def _context_ids(
    request: Request,
    passages: Sequence[str],
    instruction: str,
    needles: Mapping[str, float],
    target: int,
) -> tuple[list[int], dict[str, float]]:
    """Opening, instruction and haystack with needles at the depths that they are given: `target`
    tokens, nearly. And the depths at which they stand."""
    tokenizer, length, slack = request.tokenizer, request.length, request.slack
    head, _ = prompts.prompt_frame(tokenizer)

    def encode_body(body: str) -> list[int]:
        return head + prompts.encode(tokenizer, instruction + body)

    together = "".join(f"{needle} " for needle in needles)
    bare = len(encode_body(together))
    if bare >= target:
        raise UserError(
            f"niah: a prompt of {length} tokens cannot hold {len(needles)} needles and the"
            f" question; with this tokenizer it takes more than {bare + length - target}"
        )
    whole = passages_within(tokenizer, passages, target - bare)
    chosen = passages[: whole + _SPARE_PASSAGES + whole // 50]
    text = " ".join(chosen)
    # How much of the text there is room for. What stands after the last needle is cut to length
    # once more, as the needles part the text in other tokens.
    shown = fit(lambda end: len(encode_body(together + end)), text, target, slack)
    room = max(0, len(shown) - _SPARE_LETTERS * len(needles))
    places = depths.positions(chosen, list(needles.values()), len(shown), room)
    front, after, found = "", 0, {}
    for place, needle in sorted(zip(places, needles, strict=True)):
        before = text[after:place].strip()
        front += f"{before} " if before else ""
        found[needle] = len(encode_body(front))
        front += f"{needle} "
        after = place
    rest = fit(lambda end: len(encode_body(front + end)), text[after:].lstrip(), target, slack)
    ids = encode_body(front + rest)
    return ids, {needle: round(tokens / len(ids), 4) for needle, tokens in found.items()}


def _ask(tokenizer: Tokenizer, keys: Sequence[str], many: bool) -> list[int]:
    listed = _listing(keys)
    return prompts.ask(
        tokenizer, QUESTION[many].format(keys=listed), ANSWER_PREFIX[many].format(keys=listed)
    )


def _question(
    tokenizer: Tokenizer,
    identity: str,
    keys: Sequence[str],
    hidden: Mapping[str, Sequence[str]],
    depth: Mapping[str, Sequence[float]],
) -> Question:
    references = [value for key in keys for value in hidden[key]]
    answer = _answer(tokenizer, references)
    others = [hidden[key] for key in hidden if key not in keys] if len(keys) == 1 else []
    return Question(
        id=identity,
        ids=_ask(tokenizer, keys, len(references) > 1),
        references=references,
        answer_ids=answer,
        max_new_tokens=len(answer) + _SPARE_TOKENS * len(references),
        depth=tuple(share for key in keys for share in depth[key]),
        alternatives=tuple(Alternative(list(own), _answer(tokenizer, own)) for own in others),
    )


def _answer(tokenizer: Tokenizer, values: Sequence[str]) -> list[int]:
    return prompts.encode(tokenizer, f" {_listing(values)}")


def _listing(items: Sequence[str]) -> str:
    """Items as RULER writes several: `a, b, and c`."""
    return f"{', '.join(items[:-1])}, and {items[-1]}" if len(items) > 1 else items[0]
