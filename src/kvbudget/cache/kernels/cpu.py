"""Decode attention on a CPU, compiled by numba: straight from slots whose numbers are packed.

The tokens of all heads are shared out evenly among threads. Each takes blocks that fit its caches:
keys are unpacked and multiplied, and the softmax of a block is joined to that of the blocks before
it (Milakov and Gimelshein, 2018), so that what is stored is read once and little is written. Where
numbers are not packed, PyTorch's own kernels are faster.
"""

import math

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kvbudget.cache.slots import Slots

BLOCK = 64  # tokens that are unpacked at once: 16 KiB at a head dimension of 64

# Sums in any order, or they could not be taken by vector instructions; infinity keeps its meaning.
_how = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}


@njit(**_how)
def _exponentials(x, whole, scale, count):
    """Replace `x` by e to its power, 0 below -87: a polynomial times a power of 2 (Cephes, Moshier,
    1992), which becomes vector instructions. `whole` and `scale` are the same memory."""
    for i in range(count):
        y = max(x[i], np.float32(-87.0))
        n = math.floor(y * np.float32(1.44269504) + np.float32(0.5))
        y = y - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * y + np.float32(1.3981999507e-3)
        p = p * y + np.float32(8.3334519073e-3)
        p = p * y + np.float32(4.1665795894e-2)
        p = p * y + np.float32(1.6666665459e-1)
        p = p * y + np.float32(5.0000001201e-1)
        p = p * y * y + y + np.float32(1.0)
        whole[i] = (np.int32(n) + np.int32(127)) << 23
        x[i] = p if x[i] > np.float32(-87.0) else np.float32(0.0)
    for i in range(count):
        x[i] *= scale[i]


@njit(**_how)
def _unpack(bits, row, count, stored, halves, numbers, least, step):
    """Levels of rows as float32, `(parts, count, codes)`, and the least number and the step of each
    row. `stored` and `halves` are the same rows as bytes and as bits of float16."""
    parts, _, codes = numbers.shape
    mask = np.int32((1 << bits) - 1)
    for part in range(parts):
        shift = np.int32(part * bits)
        for t in range(count):
            for i in range(codes):
                numbers[part, t, i] = np.float32((np.int32(stored[row + t, i]) >> shift) & mask)
    _widen(halves, row, codes // 2, count, least, least.view(np.int32))
    _widen(halves, row, codes // 2 + 1, count, step, step.view(np.int32))


@njit(**_how)
def _widen(halves, row, column, count, numbers, whole):
    """float16 to float32, of a column; `numbers` and `whole` are the same memory."""
    for t in range(count):
        one = np.int32(halves[row + t, column])
        whole[t] = ((one & 0x8000) << 16) | ((one & 0x7FFF) << 13)
    for t in range(count):
        numbers[t] *= np.float32(2.0**112)  # the exponent's offset; right for the smallest, too


@njit(**_how)
def _products(query, numbers, count, weights):
    """Products of the queries with each of the rows."""
    parts, _, codes = numbers.shape
    for r in range(len(query)):
        for t in range(count):
            total = np.float32(0.0)
            for part in range(parts):
                for i in range(codes):
                    total += query[r, part, i] * numbers[part, t, i]
            weights[r, t] = total


@njit(**_how)
def _combine(weights, numbers, count, sums):
    """Add the rows by their weights, eight at a time; those behind the last weigh nothing."""
    parts, _, codes = numbers.shape
    for r in range(len(weights)):
        for t in range(count, (count + 7) // 8 * 8):
            weights[r, t] = np.float32(0.0)
        for t in range(0, count, 8):
            a, b, c, d = weights[r, t], weights[r, t + 1], weights[r, t + 2], weights[r, t + 3]
            e, f, g, h = weights[r, t + 4], weights[r, t + 5], weights[r, t + 6], weights[r, t + 7]
            for part in range(parts):
                for i in range(codes):
                    one = a * numbers[part, t, i] + b * numbers[part, t + 1, i]
                    two = c * numbers[part, t + 2, i] + d * numbers[part, t + 3, i]
                    three = e * numbers[part, t + 4, i] + f * numbers[part, t + 5, i]
                    four = g * numbers[part, t + 6, i] + h * numbers[part, t + 7, i]
                    sums[r, part, i] += (one + two) + (three + four)


@njit(**_how)
def _cap(x, softcap, whole, scale, count):
    """`softcap * tanh(x / softcap)`."""
    for t in range(count):
        x[t] *= np.float32(2.0) / softcap
    _exponentials(x, whole, scale, count)
    for t in range(count):
        x[t] = softcap - np.float32(2.0) * softcap / (x[t] + np.float32(1.0))


@njit(**_how)
def _share(
    begin, end, query, centre, positions, starts, ends, key_bits, keys, key_halves, value_bits,
    values, value_halves, scaling, softcap, padded, received, logits, sums, norms, peaks,
):  # fmt: skip
    """What one thread adds up: tokens `begin` to `end` of those of all heads, one after another."""
    batch, heads, rows, key_parts, key_codes = query.shape
    _, _, value_parts, value_codes = sums.shape
    of_keys = np.zeros((key_parts, BLOCK, key_codes), np.float32)
    of_values = np.zeros((value_parts, BLOCK, value_codes), np.float32)
    powers = np.zeros(BLOCK, np.int32)
    scale = powers.view(np.float32)
    least, step = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    weights = np.zeros((rows, BLOCK), np.float32)
    total, shift = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    before = 0
    for place in range(batch * heads):
        b, head = place // heads, place % heads
        length = ends[head] - starts[head]
        low, high = max(begin - before, 0), min(end - before, length)
        before += length
        if low >= high:
            continue
        own, norm, peak = sums[place], norms[place], peaks[place]
        asked = query[b, head]
        _offsets(asked, centre[b, head], total, shift)
        for first in range(low, high, BLOCK):
            count = min(BLOCK, high - first)
            slot = starts[head] + first
            row = b * positions.shape[1] + slot
            _unpack(key_bits, row, count, keys, key_halves, of_keys, least, step)
            _products(asked, of_keys, count, weights)
            for r in range(rows):
                w = weights[r]
                for t in range(count):
                    w[t] = scaling * (w[t] * step[t] + total[r] * least[t] + shift[r])
                if softcap > 0:
                    _cap(w, softcap, powers, scale, count)
                if padded:
                    for t in range(count):
                        if positions[b, slot + t] < 0:
                            w[t] = -np.inf
                if received:
                    for t in range(count):
                        logits[b, r, slot + t] = w[t]
                most = peak[r]
                for t in range(count):
                    most = max(most, w[t])
                # A block of padding alone weighs nothing, whatever its peak is taken to be.
                safe = most if most > -np.inf else np.float32(0.0)
                for t in range(count):
                    w[t] -= safe
                _exponentials(w, powers, scale, count)
                part = np.float32(0.0)
                for t in range(count):
                    part += w[t]
                fade = np.float32(math.exp(peak[r] - safe))
                peak[r], norm[r] = most, norm[r] * fade + part
                if fade != 1:
                    for j in range(value_parts):
                        for i in range(value_codes):
                            own[r, j, i] *= fade
            _unpack(value_bits, row, count, values, value_halves, of_values, least, step)
            _scale(weights, least, step, count, own)
            _combine(weights, of_values, count, own)


@njit(**_how)
def _offsets(query, centre, total, shift):
    """What the least number of a key and the centre go with in its product with each query."""
    rows, parts, codes = query.shape
    for r in range(rows):
        one, other = np.float32(0.0), np.float32(0.0)
        for part in range(parts):
            for i in range(codes):
                one += query[r, part, i]
                other += query[r, part, i] * centre[part, i]
        total[r], shift[r] = one, other


@njit(**_how)
def _scale(weights, least, step, count, sums):
    """Weights of levels from those of values, whose least numbers are added."""
    rows, parts, codes = sums.shape
    for r in range(rows):
        base = np.float32(0.0)
        for t in range(count):
            base += weights[r, t] * least[t]
            weights[r, t] *= step[t]
        for part in range(parts):
            for i in range(codes):
                sums[r, part, i] += base


@njit(**_how)
def _join(sums, norms, peaks, output, logsumexp):
    """The output of all rows from the shares of all threads."""
    threads, places, rows, dim = sums.shape
    for place in range(places):
        for r in range(rows):
            most, norm = np.float32(-np.inf), np.float32(0.0)
            for thread in range(threads):
                most = max(most, peaks[thread, place, r])
            for i in range(dim):
                output[place, r, i] = np.float32(0.0)
            logsumexp[place, r] = np.float32(-np.inf)
            if most == -np.inf:
                continue
            for thread in range(threads):
                share = np.float32(math.exp(peaks[thread, place, r] - most))
                norm += share * norms[thread, place, r]
                for i in range(dim):
                    output[place, r, i] += share * sums[thread, place, r, i]
            for i in range(dim):
                output[place, r, i] /= norm
            logsumexp[place, r] = most + np.float32(math.log(norm))


@njit(parallel=True, **_how)
def _attend(
    query, centre, positions, starts, ends, key_bits, keys, key_halves, value_bits, values,
    value_halves, scaling, softcap, padded, received, logits, sums, norms, peaks,
):  # fmt: skip
    """Fill the sums, norms and peaks of all threads."""
    threads, tokens = len(sums), 0
    for head in range(len(starts)):
        tokens += len(query) * (ends[head] - starts[head])
    for thread in prange(threads):
        _share(
            tokens * thread // threads, tokens * (thread + 1) // threads, query, centre, positions,
            starts, ends, key_bits, keys, key_halves, value_bits, values, value_halves, scaling,
            softcap, padded, received, logits, sums[thread], norms[thread], peaks[thread],
        )  # fmt: skip


@njit(**_how)
def _receive(logits, logsumexp, starts, ends, received):
    """Attention that tokens receive, summed over rows."""
    batch, rows, _ = logits.shape
    powers = np.empty(BLOCK, np.int32)
    weights = np.empty(BLOCK, np.float32)
    for b in range(batch):
        for head in range(len(starts)):
            for first in range(starts[head], ends[head], BLOCK):
                count = min(BLOCK, ends[head] - first)
                for t in range(count):
                    received[b, first + t] = np.float32(0.0)
                for r in range(rows):
                    for t in range(count):
                        weights[t] = logits[b, r, first + t] - logsumexp[b, head, r]
                    _exponentials(weights, powers, powers.view(np.float32), count)
                    for t in range(count):
                        received[b, first + t] += weights[t]


@njit(cache=True, nogil=True)  # rounding as it is written
def _store(vectors, centre, free, bits, stored, halves):
    """Pack vectors `(batch, heads, dim)`, less their centre, as `Quantizer.encode` does."""
    batch, heads, dim = vectors.shape
    slots, codes = len(stored) // batch, dim * bits // 8
    most, number = np.float32((1 << bits) - 1), np.zeros(1, np.float32)
    whole, x = number.view(np.int32), np.zeros(dim, np.float32)
    for b in range(batch):
        for head in range(heads):
            for i in range(dim):
                x[i] = vectors[b, head, i] - centre[b, head, i]
            row = b * slots + free[head]
            number[0] = x.min()
            halves[row, codes // 2] = _half(number, whole)
            least = number[0]
            number[0] = (x.max() - least) / most
            halves[row, codes // 2 + 1] = _half(number, whole)
            step = number[0] if number[0] > 0 else np.float32(1.0)
            for i in range(codes):
                code = 0
                for part in range(8 // bits):
                    level = np.rint((x[part * codes + i] - least) / step)
                    code |= int(min(max(level, np.float32(0.0)), most)) << part * bits
                stored[row, i] = code


@njit(cache=True, nogil=True)
def _half(number, whole):
    """The bits of the float16 next to a number, even on a tie; the number becomes it. `number` and
    `whole` are the same memory."""
    sign, size = (whole[0] >> 16) & 0x8000, whole[0] & 0x7FFFFFFF
    if size < 0x38800000:  # below 2^-14 they are 2^-24 apart
        bits = int(np.rint(abs(number[0]) * np.float32(2.0**24)))
        number[0] = np.float32(bits) * np.float32(2.0**-24)
    elif size >= 0x477FF000:  # from 65,520 on
        bits = 0x7C00
        number[0] = np.inf
    else:
        bits = (size + 0xFFF + ((size >> 13) & 1) - 0x38000000) >> 13
        whole[0] = (bits << 13) + 0x38000000
    if sign:
        number[0] = -number[0]
    return np.uint16(sign | bits)


def check() -> None:
    """Nothing can be missing here: numba compiles by itself."""


def store(slots: Slots, keys: Tensor, values: Tensor) -> None:
    """As `kvbudget.cache.kernels.Store`."""
    _, free = slots.bounds()
    key_bits, value_bits = slots.bits()
    new = (each.squeeze(2).float().numpy() for each in (keys, values))
    centre = slots.coding.centre.squeeze(2).numpy()
    _store(next(new), centre, free.numpy(), key_bits, *_rows(slots.keys))
    _store(next(new), np.zeros_like(centre), free.numpy(), value_bits, *_rows(slots.values))


def attend(
    query: Tensor,
    slots: Slots,
    *,
    scaling: float,
    softcap: float | None,
    padded: bool,
    received: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `kvbudget.cache.kernels.Attend`, of packed slots."""
    batch, kv_heads, rows, head_dim = query.shape
    places, asked = batch * kv_heads, query.float().contiguous()
    starts, ends = (each.numpy() for each in slots.bounds())
    bits = slots.bits()
    key_parts, value_parts = (8 // each for each in bits)
    logits = torch.empty(batch, rows if received else 0, slots.keys.shape[1])
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    sums = np.zeros((threads, places, rows, value_parts, head_dim // value_parts), np.float32)
    norms = np.zeros((threads, places, rows), np.float32)
    peaks = np.full((threads, places, rows), -np.inf, np.float32)
    _attend(
        asked.view(batch, kv_heads, rows, key_parts, -1).numpy(),
        slots.coding.centre.view(batch, kv_heads, key_parts, -1).numpy(),
        slots.positions.numpy(), starts, ends,
        bits[0], *_rows(slots.keys), bits[1], *_rows(slots.values),
        np.float32(scaling), np.float32(softcap or 0), padded, received,
        logits.numpy(), sums, norms, peaks,
    )  # fmt: skip
    output, logsumexp = torch.empty_like(asked), torch.empty(query.shape[:3])
    joined = output.flatten(0, 1).numpy(), logsumexp.flatten(0, 1).numpy()
    _join(sums.reshape(threads, places, rows, head_dim), norms, peaks, *joined)
    weights = None
    if received:
        weights = torch.empty(batch, slots.keys.shape[1])
        _receive(logits.numpy(), logsumexp.numpy(), starts, ends, weights.numpy())
    return output.to(query.dtype), logsumexp, weights


def _rows(stored: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows of bytes, and the same memory as bits of float16."""
    rows = stored.flatten(0, 1)
    return rows.numpy(), rows.view(torch.uint16).numpy()
