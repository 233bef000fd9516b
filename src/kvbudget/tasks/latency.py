"""How far a streamed translation lags behind its source, and how good it is.

Delays are counted as in SimulEval (Ma et al., 2020): `delays[i]` is the number of source tokens
that were read before target token `i` was written, so wait-k writes its first token at delay k.
"""

from collections.abc import Sequence
from itertools import pairwise

import sacrebleu

from kvbudget.errors import UserError


def average_lagging(delays: Sequence[int], source: int, reference: int) -> float:
    """AL (Ma et al., 2019, equation 8): mean source tokens behind an ideal policy.

    The ideal policy writes `reference / source` tokens for each that it reads. The mean is over
    the target tokens up to the first that had the whole source. A translation longer than its
    reference is rewarded; `length_adaptive_average_lagging` mends that.

    Args:
        delays: source tokens read before each target token, not falling.
        source: tokens of the source.
        reference: tokens of the reference translation.

    Raises:
        UserError: no delays, a length below 1, delays that fall or exceed the source.
    """
    _check(delays, source, reference)
    return _lagging(delays, source, reference)


def length_adaptive_average_lagging(delays: Sequence[int], source: int, reference: int) -> float:
    """LAAL (Papi et al., 2022): AL with the longer of reference and translation as target length.

    Arguments and errors are those of `average_lagging`.
    """
    _check(delays, source, reference)
    return _lagging(delays, source, max(reference, len(delays)))


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, of detokenised text by sacrebleu's defaults (13a, case kept)."""
    if not translations or len(translations) != len(references):
        raise UserError(
            f"BLEU needs a reference for each translation, not {len(references)} for"
            f" {len(translations)}"
        )
    return sacrebleu.corpus_bleu(list(translations), [list(references)]).score


def wait_k(k: int, source: int, target: int) -> list[int]:
    """Delays of wait-k (Ma et al., 2019, equation 7): k tokens first, then one read a written."""
    return [min(k + written, source) for written in range(target)]


def _lagging(delays: Sequence[int], source: int, target: int) -> float:
    # The first target token that had the whole source, or the last one.
    last = next((i for i, delay in enumerate(delays) if delay >= source), len(delays) - 1)
    ideal = source / target
    return sum(delay - i * ideal for i, delay in enumerate(delays[: last + 1])) / (last + 1)


def _check(delays: Sequence[int], source: int, reference: int) -> None:
    if not delays or source < 1 or reference < 1:
        raise UserError("lagging needs at least one token of source, reference and translation")
    if any(b < a for a, b in pairwise(delays)) or delays[-1] > source:
        raise UserError(f"delays {list(delays)} must not fall, nor exceed {source} source tokens")
