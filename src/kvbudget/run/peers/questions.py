"""Questions of a context that a press has compressed. What is equally long is read at once, as
there is no padding."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from kvbudget.run.greedy import Answers
from kvbudget.run.peers.compressed import Compressed
from kvbudget.run.stopwatch import Stopwatch

#: Sequences that are read at once; each has keys and values of its own.
_AT_ONCE = 16
#: Steps of one sequence alone that are timed in each context.
_TIMED = 4


class Rows:
    """Sequences, equally long, that go on from a compressed context, each with a copy of it.

    Args:
        model: reads them.
        compressed: the context, which stays as it is.
        count: sequences.
    """

    def __init__(self, model: PreTrainedModel, compressed: Compressed, count: int):
        self._model, self._compressed, self._tokens = model, compressed, compressed.tokens
        self._cache = _rows_of(compressed.cache, [0] * count)

    def branch(self, rows: list[int]) -> "Rows":
        """Copies of some of them, in that order, a row as often as it is named."""
        other = copy.copy(self)
        other._cache = _rows_of(self._cache, rows)
        return other

    def read(self, rows: list[list[int]]) -> Tensor:
        """Logits after each token of each row, `(rows, tokens, vocab)`.

        transformers makes one mask, for the first layer. It does not fit others that hold fewer
        tokens; then tokens are read one at a time, for which it needs none.
        """
        ids = torch.tensor(rows, device=self._model.device)
        layers = zip(self._model.model.layers, self._compressed.masked, strict=True)
        for layer, places in layers:
            layer.self_attn.masked_key_indices = places and (
                torch.arange(len(rows), device=ids.device).repeat_interleave(len(places[0])),
                *(each.repeat(len(rows)) for each in places),
            )
        alone = len(set(self._compressed.lengths)) > 1
        logits = []
        for piece in ids.split(1 if alone else ids.shape[1], dim=1):
            after = self._tokens + piece.shape[1]
            positions = torch.arange(self._tokens, after, device=ids.device)
            found = self._model(
                input_ids=piece,
                past_key_values=self._cache,
                position_ids=positions.expand_as(piece),
            )
            logits.append(found.logits)
            self._tokens = after
        return torch.cat(logits, dim=1)


def _rows_of(cache: DynamicCache, rows: list[int]) -> DynamicCache:
    copied = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copied.update(layer.keys[rows], layer.values[rows], index)
    return copied


def ask(
    model: PreTrainedModel, compressed: Compressed, questions: list[dict], details: bool
) -> list[dict[str, Any]]:
    """Greedy answers and the likelihoods of given ones; with `details` the logits after each
    question and after each token of its given answers, too."""
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    found: list[dict[str, Any]] = [{} for _ in questions]
    for group in _alike([each["ids"] for each in questions]):
        own = [questions[place] for place in group]
        asked = Rows(model, compressed, len(own))
        first = asked.read([each["ids"] for each in own])[:, -1]
        answers = Answers(first, [each["max_new_tokens"] for each in own], stops)
        logits = [[each[None]] for each in first]
        for row, ids, after in _given(asked, [each["answers"] for each in own]):
            answers.learn(row, ids, after)
            logits[row].append(after)
        _write(asked, answers)
        results = zip(group, answers.tokens, answers.log_likelihoods, logits, strict=True)
        for place, tokens, likelihoods, all_logits in results:
            found[place] = {"tokens": tokens, "log_likelihoods": likelihoods}
            if details:
                found[place]["logits"] = torch.cat(all_logits).tolist()
    return found


def _given(asked: Rows, given: list[list[list[int]]]) -> Iterator[tuple[int, list[int], Tensor]]:
    """Rows, the answers that are given to each, in order, and the logits after their tokens."""
    texts = [(row, ids) for row, answers in enumerate(given) for ids in answers]
    found: dict[int, Tensor] = {}
    for part in _alike([ids for _, ids in texts]):
        rows = asked.branch([texts[each][0] for each in part])
        found |= zip(part, rows.read([texts[each][1] for each in part]), strict=True)
    return ((*text, found[each]) for each, text in enumerate(texts))


def _alike(texts: list[list[int]]) -> Iterator[list[int]]:
    """Places of texts that are equally long, as many as are read at once."""
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for _, same in itertools.groupby(by_length, key=lambda place: len(texts[place])):
        group = list(same)
        yield from (group[start : start + _AT_ONCE] for start in range(0, len(group), _AT_ONCE))


def _write(asked: Rows, answers: Answers) -> None:
    """Write the answers to questions that have been read."""
    unknown = answers.follow()
    for part in _alike([answers.tokens[row] for row in unknown]):
        own = [unknown[each] for each in part]
        rows, unread = asked.branch(own), [list(answers.tokens[row]) for row in own]
        # A row whose answer is over is read on, and not looked at.
        left = dict(enumerate(own))
        while left:
            tokens = rows.read(unread)[:, -1].argmax(dim=-1).tolist()
            left = {index: row for index, row in left.items() if answers.take(row, tokens[index])}
            unread = [[token] for token in tokens]


def timed(model: PreTrainedModel, compressed: Compressed, question: dict) -> list[float]:
    """Seconds of decode steps after a question, of a sequence alone. What is decoded is the
    reference's first tokens."""
    row = Rows(model, compressed, 1)
    row.read([question["ids"]])
    seconds = []
    for token in question["answers"][0][:_TIMED]:
        watch = Stopwatch()
        row.read([[token]])
        seconds.append(watch.seconds())
    return seconds
