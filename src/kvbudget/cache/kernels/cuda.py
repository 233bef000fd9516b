"""Decode attention on a GPU, in Triton: straight from the slots, packed or not, heads as they are.

As in Flash-Decoding (Dao et al., 2023) the tokens of each head are split among programs, and a
second kernel joins their parts. A head's tokens are as many as it holds: nothing is padded to the
longest. Packed numbers are unpacked in registers, so that memory is read once and in few bits.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from kvbudget.cache.slots import Slots

BLOCK = 64  # tokens that a program looks at at once
ROWS = 32  # rows of a program at most
LEAST = 256  # tokens of a program at least, or joining costs more than it saves
BFLOAT16 = (8, 0)  # compute capability from which products take bfloat16 (Ampere)
PARTS = 16  # that are joined at once
WAVES = 4  # programs for each multiprocessor


@triton.jit
def _levels(codes, PLACE: tl.constexpr, BITS: tl.constexpr, FINE: tl.constexpr):
    """The integers of a part of the vectors, from their bytes, as float32 if FINE, or as float16:
    written behind 1024 they are its last bits, which takes fewer instructions than a conversion."""
    levels = (codes >> (PLACE * BITS)) & ((1 << BITS) - 1)
    if FINE:
        numbers = levels.to(tl.float32)
    else:
        numbers = (levels.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    return numbers


@triton.jit
def _part(pointers, PLACE: tl.constexpr, CODES: tl.constexpr, mask):
    return tl.load(pointers + PLACE * CODES, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["slots", "chunk", "splits", "rows"])
def _attend(
    query,
    keys,
    values,
    positions,
    centre,
    starts,
    ends,
    sums,
    stats,
    logits,
    scaling,
    softcap,
    slots,
    chunk,
    splits,
    rows,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PADDED: tl.constexpr,
    RECEIVED: tl.constexpr,
    FINE: tl.constexpr,
):
    """One split of the tokens of a head: the sums of its values, unnormalised, and what they are to
    be normalised by. Bits of 0 are numbers that are not packed."""
    KEY_PARTS: tl.constexpr = 8 // KEY_BITS if KEY_BITS else 1
    VALUE_PARTS: tl.constexpr = 8 // VALUE_BITS if VALUE_BITS else 1
    KEY_CODES: tl.constexpr = DIM // KEY_PARTS
    VALUE_CODES: tl.constexpr = DIM // VALUE_PARTS
    KEY_WIDTH: tl.constexpr = KEY_CODES + 4
    VALUE_WIDTH: tl.constexpr = VALUE_CODES + 4
    PRECISION: tl.constexpr = "ieee" if FINE else "tf32"

    split, place = tl.program_id(0), tl.program_id(1)
    batch, head = place // HEADS, place % HEADS
    start = tl.load(starts + head)
    length = (tl.load(ends + head) - start).to(tl.int32)
    low = split * chunk
    high = tl.minimum(length, low + chunk)
    own = tl.program_id(2) * M + tl.arange(0, M)
    here = own < rows
    of_key, of_value = tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    real_key, real_value = of_key < KEY_CODES, of_value < VALUE_CODES

    asked = here[:, None] & real_key[None, :]
    pointers = query + (place * rows + own)[:, None] * DIM + of_key[None, :]
    q0 = _part(pointers, 0, KEY_CODES, asked)
    q1, q2, q3 = q0, q0, q0
    if KEY_PARTS > 1:
        q1 = _part(pointers, 1, KEY_CODES, asked)
    if KEY_PARTS > 2:
        q2 = _part(pointers, 2, KEY_CODES, asked)
        q3 = _part(pointers, 3, KEY_CODES, asked)
    total = tl.zeros([M], tl.float32)  # of a row's numbers, which the least of a key goes with
    shift = tl.zeros([M], tl.float32)  # product with the centre
    unit = tl.full([M], 1.0, tl.float32)
    if KEY_BITS:
        middle = centre + place * DIM + of_key
        f0, f1 = q0.to(tl.float32), q1.to(tl.float32)
        f2, f3 = q2.to(tl.float32), q3.to(tl.float32)
        largest = tl.max(tl.abs(f0), 1)
        total = tl.sum(f0, 1)
        shift = tl.sum(f0 * _part(middle, 0, KEY_CODES, real_key)[None, :], 1)
        if KEY_PARTS > 1:
            largest = tl.maximum(largest, tl.max(tl.abs(f1), 1))
            total += tl.sum(f1, 1)
            shift += tl.sum(f1 * _part(middle, 1, KEY_CODES, real_key)[None, :], 1)
        if KEY_PARTS > 2:
            largest = tl.maximum(largest, tl.max(tl.maximum(tl.abs(f2), tl.abs(f3)), 1))
            total += tl.sum(f2, 1) + tl.sum(f3, 1)
            shift += tl.sum(f2 * _part(middle, 2, KEY_CODES, real_key)[None, :], 1)
            shift += tl.sum(f3 * _part(middle, 3, KEY_CODES, real_key)[None, :], 1)
        q0, q1, q2, q3 = f0, f1, f2, f3
        if not FINE:  # far from where float16 ends on either side; a power of 2 rounds nothing
            unit = tl.where(largest > 0, tl.exp2(tl.floor(tl.log2(largest)) - 8), 1.0)
            q0, q1 = (f0 / unit[:, None]).to(tl.float16), (f1 / unit[:, None]).to(tl.float16)
            q2, q3 = (f2 / unit[:, None]).to(tl.float16), (f3 / unit[:, None]).to(tl.float16)

    most = tl.full([M], float("-inf"), tl.float32)
    norm = tl.zeros([M], tl.float32)
    base = tl.zeros([M], tl.float32)  # what the least numbers of values add to all of a row
    a0 = tl.zeros([M, VALUE_PAD], tl.float32)
    a1, a2, a3 = a0, a0, a0
    for first in range(low, high, N):
        token = first + tl.arange(0, N)
        live = token < high
        row = batch.to(tl.int64) * slots + start + token
        seen = real_key[:, None] & live[None, :]
        if KEY_BITS:
            codes = tl.load(keys + row[None, :] * KEY_WIDTH + of_key[:, None], mask=seen, other=0)
            s = tl.dot(q0, _levels(codes, 0, KEY_BITS, FINE), input_precision=PRECISION)
            if KEY_PARTS > 1:
                more = _levels(codes, 1, KEY_BITS, FINE)
                s = tl.dot(q1, more, s, input_precision=PRECISION)
            if KEY_PARTS > 2:
                more = _levels(codes, 2, KEY_BITS, FINE)
                s = tl.dot(q2, more, s, input_precision=PRECISION)
                more = _levels(codes, 3, KEY_BITS, FINE)
                s = tl.dot(q3, more, s, input_precision=PRECISION)
            scale = (keys + row * KEY_WIDTH + KEY_CODES).to(tl.pointer_type(tl.float16))
            least = tl.load(scale, mask=live, other=0.0).to(tl.float32)
            step = tl.load(scale + 1, mask=live, other=0.0).to(tl.float32)
            s = s * unit[:, None] * step[None, :]
            s += total[:, None] * least[None, :] + shift[:, None]
        else:
            key = tl.load(keys + row[None, :] * DIM + of_key[:, None], mask=seen, other=0.0)
            s = tl.dot(q0, key.to(q0.dtype), input_precision=PRECISION)
        s *= scaling
        if SOFTCAP:
            s = softcap * (2 * tl.sigmoid(2 * s / softcap) - 1)
        if PADDED:
            live = live & (tl.load(positions + row, mask=live, other=-1) >= 0)
        s = tl.where(live[None, :], s, float("-inf"))
        if RECEIVED:
            noted = (batch.to(tl.int64) * rows + own)[:, None] * slots + (start + token)[None, :]
            tl.store(logits + noted, s, mask=here[:, None] & (token < high)[None, :])
        peak = tl.maximum(most, tl.max(s, 1))
        safe = tl.where(peak == float("-inf"), 0.0, peak)
        fade = tl.exp(most - safe)
        p = tl.exp(s - safe[:, None])
        norm = norm * fade + tl.sum(p, 1)
        most = peak
        a0 *= fade[:, None]
        seen = live[:, None] & real_value[None, :]
        if VALUE_BITS:
            codes = tl.load(
                values + row[:, None] * VALUE_WIDTH + of_value[None, :], mask=seen, other=0
            )
            scale = (values + row * VALUE_WIDTH + VALUE_CODES).to(tl.pointer_type(tl.float16))
            least = tl.load(scale, mask=live, other=0.0).to(tl.float32)
            step = tl.load(scale + 1, mask=live, other=0.0).to(tl.float32)
            base = base * fade + tl.sum(p * least[None, :], 1)
            w = p * step[None, :]
            if not FINE:  # more digits than bfloat16 has, and levels are exact in both
                w = w.to(tl.float16)
            a0 = tl.dot(w, _levels(codes, 0, VALUE_BITS, FINE), a0, input_precision=PRECISION)
            if VALUE_PARTS > 1:
                more = _levels(codes, 1, VALUE_BITS, FINE)
                a1 = tl.dot(w, more, a1 * fade[:, None], input_precision=PRECISION)
            if VALUE_PARTS > 2:
                more = _levels(codes, 2, VALUE_BITS, FINE)
                a2 = tl.dot(w, more, a2 * fade[:, None], input_precision=PRECISION)
                more = _levels(codes, 3, VALUE_BITS, FINE)
                a3 = tl.dot(w, more, a3 * fade[:, None], input_precision=PRECISION)
        else:
            value = tl.load(values + row[:, None] * DIM + of_value[None, :], mask=seen, other=0.0)
            w = p.to(q0.dtype)
            a0 = tl.dot(w, value.to(w.dtype), a0, input_precision=PRECISION)

    line = (place * splits + split) * rows + own
    tl.store(stats + line * 2, most, mask=here)
    tl.store(stats + line * 2 + 1, norm, mask=here)
    out = sums + line[:, None] * DIM + of_value[None, :]
    kept = here[:, None] & real_value[None, :]
    tl.store(out, a0 + base[:, None], mask=kept)
    if VALUE_PARTS > 1:
        tl.store(out + VALUE_CODES, a1 + base[:, None], mask=kept)
    if VALUE_PARTS > 2:
        tl.store(out + 2 * VALUE_CODES, a2 + base[:, None], mask=kept)
        tl.store(out + 3 * VALUE_CODES, a3 + base[:, None], mask=kept)


@triton.jit(do_not_specialize=["splits", "rows"])
def _join(
    sums, stats, output, logsumexp, splits, rows,
    DIM: tl.constexpr, PAD: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The output of a row from the parts of all splits, some at a time."""
    place, own = tl.program_id(0), tl.program_id(1)
    number = tl.arange(0, PAD)
    real = number < DIM
    most, norm = float("-inf"), 0.0
    total = tl.zeros([PAD], tl.float32)
    for first in range(0, splits, PARTS):
        split = first + tl.arange(0, PARTS)
        line = (place * splits + split) * rows + own
        there = split < splits
        peaks = tl.load(stats + line * 2, mask=there, other=float("-inf"))
        norms = tl.load(stats + line * 2 + 1, mask=there, other=0.0)
        parts = tl.load(
            sums + line[:, None] * DIM + number[None, :],
            mask=there[:, None] & real[None, :],
            other=0.0,
        )
        peak = tl.maximum(most, tl.max(peaks, 0))
        safe = tl.where(peak == float("-inf"), 0.0, peak)
        shares, fade = tl.exp(peaks - safe), tl.exp(most - safe)
        norm = norm * fade + tl.sum(shares * norms, 0)
        total = total * fade + tl.sum(shares[:, None] * parts, 0)
        most = peak
    line = place * rows + own
    seen = norm > 0
    result = tl.where(seen, total / tl.where(seen, norm, 1.0), 0.0)
    tl.store(output + line * DIM + number, result.to(output.dtype.element_ty), mask=real)
    tl.store(logsumexp + line, most + tl.log(tl.where(seen, norm, 1.0)))


@triton.jit(do_not_specialize=["slots", "rows"])
def _receive(
    logits, logsumexp, starts, ends, received, slots, rows, HEADS: tl.constexpr, N: tl.constexpr
):
    """Attention that tokens receive, summed over rows."""
    place = tl.program_id(1)
    batch, head = place // HEADS, place % HEADS
    start = tl.load(starts + head)
    token = tl.program_id(0) * N + tl.arange(0, N)
    live = token < tl.load(ends + head) - start
    total = tl.zeros([N], tl.float32)
    for own in range(rows):
        noted = logits + (batch.to(tl.int64) * rows + own) * slots + start + token
        norm = tl.load(logsumexp + place * rows + own)
        norm = tl.where(norm == float("-inf"), 0.0, norm)  # it attends to nothing
        total += tl.exp(tl.load(noted, mask=live, other=float("-inf")) - norm)
    tl.store(received + batch.to(tl.int64) * slots + start + token, total, mask=live)


@triton.jit(do_not_specialize=["slots"])
def _store(
    new_keys,
    new_values,
    centre,
    free,
    keys,
    values,
    slots,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE_PAD: tl.constexpr,
):
    """Pack one vector of each head, a key or a value."""
    place = tl.program_id(0)
    row = (place // HEADS).to(tl.int64) * slots + tl.load(free + place % HEADS)
    if tl.program_id(1) == 0:
        target = keys + row * (DIM * KEY_BITS // 8 + 4)
        middle = centre + place * DIM
        _pack(new_keys + place * DIM, middle, 1.0, target, DIM, KEY_BITS, KEY_PAD)
    else:
        target = values + row * (DIM * VALUE_BITS // 8 + 4)
        middle = centre + place * DIM
        _pack(new_values + place * DIM, middle, 0.0, target, DIM, VALUE_BITS, VALUE_PAD)


@triton.jit
def _pack(vector, centre, share, target, DIM: tl.constexpr, BITS: tl.constexpr, PAD: tl.constexpr):
    """A vector less a share of the centre, as `Quantizer.encode` packs it."""
    PARTS: tl.constexpr = 8 // BITS
    CODES: tl.constexpr = DIM // PARTS
    MOST: tl.constexpr = (1 << BITS) - 1
    number = tl.arange(0, PAD)
    real = number < CODES
    low, high = float("inf"), float("-inf")
    for part in tl.static_range(PARTS):
        x = _difference(vector, centre, share, number + part * CODES, real)
        low = tl.minimum(low, tl.min(tl.where(real, x, float("inf"))))
        high = tl.maximum(high, tl.max(tl.where(real, x, float("-inf"))))
    least = low.to(tl.float16)
    step = ((high - least.to(tl.float32)) / MOST).to(tl.float16)
    unit = tl.where(step > 0, step.to(tl.float32), 1.0)
    codes = tl.zeros([PAD], tl.int32)
    for part in tl.static_range(PARTS):
        x = _difference(vector, centre, share, number + part * CODES, real)
        level = (x - least.to(tl.float32)) / unit
        level = (level + 12582912.0) - 12582912.0  # to the nearest, even on a tie
        level = tl.minimum(tl.maximum(level, 0.0), MOST)
        codes |= level.to(tl.int32) << (part * BITS)
    tl.store(target + number, codes.to(tl.uint8), mask=real)
    scales = (target + CODES).to(tl.pointer_type(tl.float16))
    tl.store(scales, least)
    tl.store(scales + 1, step)


@triton.jit
def _difference(vector, centre, share, number, real):
    x = tl.load(vector + number, mask=real, other=0.0).to(tl.float32)
    return x - share * tl.load(centre + number, mask=real, other=0.0)


def check() -> None:
    """See that Triton finds its driver, which it builds at the first use. Raises what it raises."""
    driver.active.get_current_target()


def store(slots: Slots, keys: Tensor, values: Tensor) -> None:
    """As `kvbudget.cache.kernels.Store`."""
    batch, kv_heads, _, head_dim = keys.shape
    key_bits, value_bits = slots.bits()
    _, free = slots.bounds()
    _store[batch * kv_heads, 2](
        keys.contiguous(),
        values.contiguous(),
        slots.coding.centre.contiguous(),
        free,
        slots.keys,
        slots.values,
        slots.keys.shape[1],
        HEADS=kv_heads,
        DIM=head_dim,
        KEY_BITS=key_bits,
        VALUE_BITS=value_bits,
        KEY_PAD=_padded(head_dim * key_bits // 8),
        VALUE_PAD=_padded(head_dim * value_bits // 8),
    )


def attend(
    query: Tensor,
    slots: Slots,
    *,
    scaling: float,
    softcap: float | None,
    padded: bool,
    received: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `kvbudget.cache.kernels.Attend`."""
    batch, kv_heads, rows, head_dim = query.shape
    dtype = query.dtype
    if dtype == torch.bfloat16 and _capability(query.device) < BFLOAT16:
        query = query.float()
    query = query.contiguous()
    key_bits, value_bits = slots.bits()
    centre = slots.coding.centre.contiguous() if slots.coding else query
    starts, ends = slots.bounds()
    filled = [(len(each.heads), each.length) for each in slots.segments]
    longest = max(length for _, length in filled)
    m = min(ROWS, _padded(rows))
    blocks = triton.cdiv(rows, m)
    programs = WAVES * _multiprocessors(query.device) // blocks
    tokens = batch * sum(heads * length for heads, length in filled)
    chunk = max(LEAST, triton.cdiv(triton.cdiv(tokens, max(1, programs)), BLOCK) * BLOCK)
    splits = max(1, triton.cdiv(longest, chunk))

    numbers = {"dtype": torch.float32, "device": query.device}
    places, total = batch * kv_heads, slots.keys.shape[1]
    sums = torch.empty(places, splits, rows, head_dim, **numbers)
    stats = torch.empty(places, splits, rows, 2, **numbers)
    logits = torch.empty(batch, rows, total, **numbers) if received else stats
    fine = query.dtype == torch.float32
    _attend[splits, places, blocks](
        query,
        slots.keys,
        slots.values,
        slots.positions,
        centre,
        starts,
        ends,
        sums,
        stats,
        logits,
        scaling,
        softcap or 1.0,
        total,
        chunk,
        splits,
        rows,
        HEADS=kv_heads,
        DIM=head_dim,
        KEY_BITS=key_bits,
        VALUE_BITS=value_bits,
        KEY_PAD=_padded(head_dim * (key_bits or 8) // 8),
        VALUE_PAD=_padded(head_dim * (value_bits or 8) // 8),
        M=m,
        N=BLOCK,
        SOFTCAP=softcap is not None,
        PADDED=padded,
        RECEIVED=received,
        FINE=fine,
        num_warps=4,
        num_stages=2,
    )
    output = torch.empty_like(query, dtype=dtype)
    logsumexp = torch.empty(batch, kv_heads, rows, **numbers)
    pad = triton.next_power_of_2(head_dim)
    _join[places, rows](
        sums, stats, output, logsumexp, splits, rows, DIM=head_dim, PAD=pad, PARTS=PARTS
    )
    if not received:
        return output, logsumexp, None
    weights = torch.empty(batch, total, **numbers)
    _receive[max(1, triton.cdiv(longest, BLOCK)), places](
        logits, logsumexp, starts, ends, weights, total, rows, HEADS=kv_heads, N=BLOCK
    )
    return output, logsumexp, weights


def _padded(count: int) -> int:
    """The extent of a block for so many numbers: products take 16 or more, a power of 2."""
    return max(16, triton.next_power_of_2(count))


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Of an interpreter, the least."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # interpreted
    return torch.cuda.get_device_properties(device).multi_processor_count
