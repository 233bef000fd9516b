"""Keys and values in few bits, so that the same bytes hold more tokens.

Each vector is turned by one fixed rotation, which spreads outlying channels over all of them
(QuaRot, Ashkboos et al., 2024), and stored as integers between its own least and greatest number.
A vector is complete in itself, so slots can be overwritten and moved one by one, which formats that
share a scale among tokens do not allow. Attention needs no turning back of keys: queries turned
alike give the same products, and what attention makes of turned values is turned back at the end.

Keys of one head have much in common, in some models far more than what tells them apart, so what
is stored of a key is its difference to a mean key. Attention is far more sensitive to keys than to
values, as many values are averaged and a wrong key moves all weights (KIVI, Liu et al., 2024, says
the same of formats by channel): values may have fewer bits.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbudget.errors import UserError

BITS = (2, 4, 8)
SCALE = torch.float16  # of a vector's step and least number
NUMBER_BYTES = 2  # of the unquantised numbers that a budget is counted in
INDEX_BYTES = 4  # of a token's position
SIGNAL_BYTES = 4  # of a number that a token is scored by


class Quantizer:
    """Vectors of one length to and from bytes.

    Args:
        bits: of a number, one of `BITS`.
        head_dim: numbers of a vector.

    Raises:
        UserError: other bits, or a head dimension that they do not fill bytes with.
    """

    def __init__(self, bits: int, head_dim: int) -> None:
        if bits not in BITS:
            raise UserError(f"bits must be one of {', '.join(map(str, BITS))}, not {bits!r}")
        if head_dim * bits % 16:  # rows of an even number of bytes, for the scales at their end
            raise UserError(f"{bits} bits do not fill bytes at a head dimension of {head_dim}")
        self.bits, self.head_dim = bits, head_dim
        self.per_byte = 8 // bits
        self.codes = head_dim // self.per_byte  # bytes
        self.width = self.codes + 2 * SCALE.itemsize  # bytes of a row

    def encode(self, x: Tensor) -> Tensor:
        """Turned vectors `(…, head_dim)` to rows of bytes `(…, width)`."""
        x = x.float()
        least = x.amin(dim=-1, keepdim=True).to(SCALE)
        step = ((x.amax(dim=-1, keepdim=True) - least) / (2**self.bits - 1)).to(SCALE)
        levels = (x - least) / step.float().where(step > 0, 1.0)  # 0 where all numbers are equal
        levels = levels.round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        codes = levels[..., : self.codes]
        for place, part in enumerate(levels.split(self.codes, dim=-1)[1:], start=1):
            codes = codes | (part << place * self.bits)
        return torch.cat((codes, torch.cat((least, step), dim=-1).view(torch.uint8)), dim=-1)

    def decode(self, rows: Tensor) -> Tensor:
        """Rows of bytes `(…, width)` to turned vectors `(…, head_dim)` in float32."""
        least, step = self._scales(rows)
        levels = torch.cat([part[..., : self.codes] for part in self._levels(rows)], dim=-1)
        return torch.addcmul(least, levels, step)

    def products(self, x: Tensor, rows: Tensor) -> Tensor:
        """Scalar products of turned vectors `(…, n, head_dim)` with rows of bytes
        `(…, tokens, width)`, which are not decoded: `(…, n, tokens)` float32."""
        least, step = self._scales(rows)
        room = (0, self.width - self.codes)
        parts = zip(x.split(self.codes, dim=-1), self._levels(rows), strict=True)
        levels = sum(torch.nn.functional.pad(own, room) @ part.mT for own, part in parts)
        return levels * step.mT + x.sum(dim=-1, keepdim=True) * least.mT

    def combine(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Sums of rows of bytes `(…, tokens, width)`, which are not decoded, by weights
        `(…, n, tokens)`: turned vectors `(…, n, head_dim)` in float32."""
        least, step = self._scales(rows)
        scaled = weights * step.mT
        parts = [(scaled @ part)[..., : self.codes] for part in self._levels(rows)]
        return torch.cat(parts, dim=-1) + weights @ least

    def _levels(self, rows: Tensor) -> Iterator[Tensor]:
        """The integers of each part of the vectors, in float32, of the width of a row.

        The last columns come from bytes of the scales and mean nothing: whole rows lie together in
        memory, their codes do not.
        """
        for place in range(self.per_byte):
            part = rows >> place * self.bits if place else rows
            if place < self.per_byte - 1:
                part = part & (2**self.bits - 1)
            yield part.float()

    def _scales(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The least number and the step of each row, `(…, 1)` float32."""
        scales = rows[..., self.codes :].contiguous().view(SCALE).float()
        return scales[..., :1], scales[..., 1:]


class Codec:
    """The formats of keys and values.

    Args:
        bits: of a number of a key, one of `BITS`.
        value_bits: of a number of a value; None is as many as of a key.
        head_dim: numbers of a vector.

    Raises:
        UserError: as `Quantizer`.
    """

    def __init__(self, bits: int, value_bits: int | None, head_dim: int) -> None:
        self.keys = Quantizer(bits, head_dim)
        self.values = self.keys if value_bits is None else Quantizer(value_bits, head_dim)
        self.head_dim = head_dim

    def slots(self, tokens: int, numbers: int = 0) -> int:
        """Quantised tokens in the bytes of `tokens` unquantised ones, with the position of each and
        the `numbers` of signals that it is kept with.

        Unquantised numbers count 2 bytes, whatever a run computes in: float32 must be no excuse
        for more tokens.
        """
        beside = INDEX_BYTES + SIGNAL_BYTES * numbers
        slot = self.keys.width + self.values.width + beside
        return tokens * 2 * self.head_dim * NUMBER_BYTES // slot

    def turn(self, x: Tensor) -> Tensor:
        """Vectors in the turned basis, in which keys, values and queries meet."""
        return self._times(x, back=False)

    def turn_back(self, x: Tensor) -> Tensor:
        """Vectors from the turned basis."""
        return self._times(x, back=True)

    def _times(self, x: Tensor, *, back: bool) -> Tensor:
        """Vectors times the rotation or its inverse."""
        # One token's in float32: half-precision products of few rows are slow on CPU.
        dtype = torch.float32 if x.device.type == "cpu" and x.shape[-2] == 1 else x.dtype
        turn = rotation(self.head_dim, dtype, x.device)
        return (x.to(dtype) @ (turn.T if back else turn)).to(x.dtype)


@dataclass(frozen=True)
class Coding:
    """How the keys and values of one layer are stored.

    Attributes:
        codec: of single vectors.
        centre: `(batch, kv_heads, 1, head_dim)` float32, what keys are stored as a difference to.
    """

    codec: Codec
    centre: Tensor

    @classmethod
    def of(cls, codec: Codec, keys: Tensor) -> "Coding":
        """The coding of a layer whose first turned keys are `(batch, kv_heads, tokens, head_dim)`.

        Any centre is right; one that is near the keys loses least.
        """
        return cls(codec, keys.float().mean(dim=2, keepdim=True))

    def encode(self, keys: Tensor, values: Tensor, heads: list[int]) -> tuple[Tensor, Tensor]:
        """Rows of bytes of turned keys and values, `(batch, len(heads), tokens, head_dim)`."""
        differences = keys.float() - self.centre[:, heads]
        return self.codec.keys.encode(differences), self.codec.values.encode(values)

    def decode_keys(self, keys: Tensor, heads: list[int]) -> Tensor:
        """Turned keys in float32 from their rows of bytes."""
        return self.codec.keys.decode(keys) + self.centre[:, heads]

    def decode_values(self, values: Tensor) -> Tensor:
        """Turned values in float32 from their rows of bytes."""
        return self.codec.values.decode(values)

    def products(self, query: Tensor, keys: Tensor, heads: list[int]) -> Tensor:
        """Scalar products of turned queries `(batch, len(heads), n, head_dim)` with keys in rows
        of bytes: `(batch, len(heads), n, tokens)` float32."""
        query = query.float()
        return self.codec.keys.products(query, keys) + query @ self.centre[:, heads].mT


@functools.cache
def rotation(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A fixed random orthogonal matrix, `(head_dim, head_dim)`, up to the rounding of `dtype`."""
    with torch.inference_mode(False):  # the first to ask must not decide who may use it
        generator = torch.Generator().manual_seed(head_dim)
        normal = torch.randn(head_dim, head_dim, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(normal).Q.to(dtype=dtype, device=device)
