"""Translation while reading: wait-k over words, with Group Position Encoding.

Wait-k (Ma et al., 2019) reads k words of the source, then one more for each word that it writes:
the i-th word of the target, counted from 0, is predicted from the first min(k + i, S) words of the
source. A token of the target therefore sees as much of the source as the token that it predicts
may know. Source tokens have positions 0, 1, …; those of the target, which begins with the end of
the prompt, have phi, phi + 1, … (Tong et al., Findings of ACL 2025, who count the beginning of the
prompt as the first of the k words; here it comes before them).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbudget.cache.streaming import StreamingCache

Words = Sequence[list[int]]  # token ids of each word


@dataclass(frozen=True)
class Translation:
    """What was written.

    Attributes:
        ids: tokens.
        delays: source words read before each word was written.
    """

    ids: list[int]
    delays: list[int]


class Translator:
    """One passage, read word by word and written word by word.

    Args:
        model: attached.
        cache: empty.
        source: words of the source; the first holds what the prompt has before them, too.
        k: words that are read before the first is written.
        phi: first position of the target, or `"auto"`: the tokens of the source, which gives
            ordinary positions. That number is known before the end only where the source is.

    Attributes:
        read: words of the source read so far.
    """

    def __init__(
        self, model: PreTrainedModel, cache: StreamingCache, source: Words, k: int, phi: int | str
    ) -> None:
        self.model, self.cache, self.source, self.k = model, cache, source, k
        self.read = self._seen = 0
        self._next = sum(map(len, source)) if phi == "auto" else phi

    @property
    def unread(self) -> bool:
        """Whether there is more of the source to come."""
        return self.read < len(self.source)

    def step(self, word: int, ids: list[int]) -> Tensor:
        """Read what target word number `word` may know; take tokens of the target before it.

        Returns the logits after each of `ids`, `(len(ids), vocabulary)`.
        """
        known = min(self.k + word, len(self.source))
        new = [token for each in self.source[self.read : known] for token in each]
        self.read = max(self.read, known)
        self.cache.expect(len(new))
        positions = [*range(self._seen, self._seen + len(new))]
        positions += range(self._next, self._next + len(ids))
        self._seen, self._next = self._seen + len(new), self._next + len(ids)
        device = self.model.device
        return self.model(
            torch.tensor([new + ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            past_key_values=self.cache,
            logits_to_keep=len(ids),
        ).logits[0]

    def follow(self, prompt: list[int], target: Words) -> Iterator[Tensor]:
        """Write a given translation: for each word, the logits that predict its tokens.

        `prompt` is the end of the prompt, which comes before the first word.
        """
        given = prompt
        for number, word in enumerate(target):
            yield self.step(number, given + word[:-1])[-len(word) :]
            given = word[-1:]

    def write(self, prompt: list[int], begins: Tensor, stops: Tensor, limit: int) -> Translation:
        """Write greedily until the end, or `limit` tokens.

        A word ends where the next token would begin another. Then a word of the source is read
        before that token is chosen anew, among those that begin a word; the end of the text is no
        choice while there is something to read.

        Args:
            prompt: the end of the prompt.
            begins: which tokens begin a word, `(vocabulary,)`.
            stops: which tokens end the text, `(vocabulary,)`.
            limit: most tokens to write.
        """
        logits, ids, delays = self.step(0, prompt)[-1], [], []
        ends = begins | stops  # the word before it
        while len(ids) < limit:
            if ids and self.unread and ends[logits.argmax()]:
                self._rewind()
                logits = self.step(len(delays), ids[-1:])[-1].masked_fill(~ends, -torch.inf)
            if self.unread:
                logits = logits.masked_fill(stops, -torch.inf)
            token = int(logits.argmax())
            if stops[token]:
                break
            if begins[token] or not ids:
                delays.append(self.read)
            ids.append(token)
            logits = self.step(len(delays) - 1, [token])[-1]
        return Translation(ids, delays)

    def _rewind(self) -> None:
        """Take back the last token of the target, to see more of the source with it."""
        self.cache.forget(1)
        self._next -= 1
