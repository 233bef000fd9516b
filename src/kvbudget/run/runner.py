"""A model with a method: reads contexts, answers questions, measures both."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.api import make_cache
from kvbudget.cache.cache import BudgetedCache
from kvbudget.errors import UserError
from kvbudget.run import memory
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.tasks.base import Context, Question


@dataclass
class Runner:
    """A model with a method, ready to read contexts and answer questions about them.

    Args:
        model: attached.
        tokenizer: the model's.
        task: module of the task, which scores answers.
        method: `policy` and its options, as in the config.
        budget: as in the config; None for the full cache.
        profile: of the model's heads, for policies that use one.
        chunk: tokens of a context and of a reference answer that are read at once; None reads
            each whole.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: ModuleType
    method: dict
    budget: int | str | None
    profile: dict | None
    chunk: int | None

    def cache(self, prompt_tokens: int | None = None) -> BudgetedCache:
        """An empty cache of the method, for a prompt of that length (by default: what comes)."""
        options = {
            key: value for key, value in self.method.items() if key not in ("name", "policy")
        }
        if self.profile is not None:
            options["profile"] = self.profile
        return make_cache(
            self.model, self.method["policy"], self.budget, prompt_tokens=prompt_tokens, **options
        )

    def run(self, context: Context) -> dict:
        """Read a context and ask its questions: samples, memory and timing of one context."""
        memory.mark_peak()
        cache = self.cache(len(context.ids))
        watch = Stopwatch()
        for piece in self.pieces(context.ids):
            last = self.read(cache, piece)[-1]
        cache.plan.policy.finish(self.model, self.tokenizer, cache, context.ids)
        prefill_s = watch.seconds()
        # Read here, as what follows holds snapshots that only the protocol needs.
        peaks = {
            "peak_rss_bytes": memory.peak_rss_bytes(),
            "peak_cuda_bytes": memory.peak_cuda_bytes(),
        }
        state = cache.snapshot()
        compressed = self.cache_bytes(cache, len(context.ids))
        slots = [[len(kept) for kept in layer.kept_positions()] for layer in cache.budgeted]
        samples, steps = [], []
        for question in context.questions:
            cache.restore(state)
            # After the question, the cache is the same for scoring the reference and for answering.
            first = self.read(cache, question.ids)[-1] if question.ids else last
            asked = cache.snapshot()
            nll = self._answer_nll(cache, question, first)
            cache.restore(asked)
            output, times = self._generate(cache, question, first)
            steps += times
            samples.append(
                {
                    "id": question.id,
                    "context_id": context.id,
                    "prompt_tokens": len(context.ids) + len(question.ids),
                    "budget_tokens": cache.plan.tokens(),
                    "score": self.task.score(output, question.references),
                    "nll": nll,
                    "output": output,
                    "reference": question.references,
                }
            )
        return {
            "samples": samples,
            "memory": {**compressed, **peaks},
            "timing": {"prefill_s": prefill_s, "decode_s": steps},
            "slots": slots,
        }

    def cache_bytes(self, cache: BudgetedCache, tokens: int) -> dict[str, int]:
        """Bytes of a cache that has read a prompt of so many tokens: planned, allocated, full."""
        itemsize = self.model.dtype.itemsize
        full = cache.planned_bytes(itemsize, tokens=tokens)
        return {
            "cache_bytes_planned": full if self.budget is None else cache.planned_bytes(itemsize),
            "cache_bytes_allocated": cache.allocated_bytes(),
            "cache_bytes_full": full,
            "cache_bytes_sliding": cache.sliding_bytes(),
        }

    def stops(self) -> set[int]:
        """Tokens that end the model's answer."""
        stops = self.model.generation_config.eos_token_id
        return {stops} if isinstance(stops, int) else set(stops or ())

    def finite(self, nll: float, answer: str) -> float:
        """A likelihood, or an error that says what to do about one that is no number."""
        if not math.isfinite(nll):
            raise UserError(
                f"the likelihood of the answer to {answer} is {nll} in {self.model.dtype}: "
                "the model overflows; use another dtype (float32 is the safest)"
            )
        return nll

    def read(self, cache: BudgetedCache, ids: list[int], logits: int = 1) -> Tensor:
        """Logits of the last `logits` of some tokens, read in one forward pass."""
        inputs = torch.tensor([ids], device=self.model.device)
        return self.model(inputs, past_key_values=cache, logits_to_keep=logits).logits[0]

    def pieces(self, ids: list[int]) -> Iterator[list[int]]:
        """Some tokens in the portions in which they are read."""
        step = self.chunk or len(ids)
        return (ids[start : start + step] for start in range(0, len(ids), step))

    def _answer_nll(self, cache: BudgetedCache, question: Question, first: Tensor) -> float:
        """Mean negative log-likelihood of a token of the reference answer, in nats.

        `first` are the logits that predict its first token. The answer is read in chunks.
        """
        total = 0.0
        for piece in self.pieces(question.answer_ids):
            known = self.read(cache, piece, logits=len(piece))
            predicted = torch.cat((first[None], known[:-1])).float()
            target = torch.tensor(piece, device=predicted.device)
            total += torch.nn.functional.cross_entropy(predicted, target, reduction="sum").item()
            first = known[-1]
        return self.finite(total / len(question.answer_ids), question.id)

    def _generate(
        self, cache: BudgetedCache, question: Question, first: Tensor
    ) -> tuple[str, list[float]]:
        """Greedy answer from the logits after the question, and the seconds of each decode step."""
        stops = self.stops()
        last, output, seconds = first, [], []
        while len(output) < question.max_new_tokens:
            token = int(last.argmax())
            if token in stops:
                break
            output.append(token)
            watch = Stopwatch()
            last = self.read(cache, [token])[-1]
            seconds.append(watch.seconds())
        return self.tokenizer.decode(output, skip_special_tokens=True), seconds
