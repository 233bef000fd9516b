"""Decode attention on a CPU, compiled by numba: straight from slots whose numbers are packed.

The tokens of each head are cut into chunks, which threads take in turn. A chunk is read in blocks
that stay in the fastest cache: keys are unpacked and multiplied, and the softmax of a block is
joined to that of the blocks before it (Milakov and Gimelshein, 2018); whoever finishes the last
chunk joins all of them. So what is stored is read once, and as chunks do not depend on the number
of threads, neither do results. Numbers that are not packed are left to PyTorch's own kernels.

Threads are those of torch (see `_run`), as a second pool would spin beside the first.
"""

import ctypes
import functools
import math

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from kvbudget.cache.slots import Slots

BLOCK = 64  # tokens that are unpacked at once: 16 KiB at a head dimension of 64
CHUNK = 512  # tokens that a thread takes at once
LANES = 16  # numbers that one instruction takes, where there is one that wide

#: What a call hands to its threads: addresses, sizes and flags, and two numbers.
_WORDS = [
    *("taken", "done", "query", "keys", "values", "positions", "centre", "starts", "ends"),
    *("parts", "logits", "output", "logsumexp", "sums"),
    *("batch", "heads", "rows", "slots", "chunks", "received", "padded"),
]
_NUMBERS = ["scaling", "softcap"]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _WORDS),
        *((name, ctypes.c_float) for name in _NUMBERS),
    ]


_record = types.Record.make_c_struct(
    [*((name, types.int64) for name in _WORDS), *((name, types.float32) for name in _NUMBERS)]
)
_signature = types.void(types.CPointer(_record))

# Sums in any order, or they could not be taken by vector instructions; infinity keeps its meaning.
_how = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
_inline = njit(forceinline=True, **_how)


@intrinsic
def _pointer(context, address):
    """An address as a pointer."""

    def code(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), code


@intrinsic
def _take(context, address):
    """The number at an address, which becomes one more: no two threads get the same."""

    def code(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], cgutils.intp_t.as_pointer())
        return builder.atomic_rmw("add", place, cgutils.intp_t(1), "seq_cst")

    return types.int64(types.int64), code


@intrinsic
def _as_float(context, bits):
    """The float32 of 32 bits."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), code


@intrinsic
def _as_int(context, number):
    """The 32 bits of a float32."""

    def code(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), code


@intrinsic
def _widen(context, source, target, shift, mask):
    """`LANES` bytes at an address, shifted right and masked, to as many float32 at another.

    Said in vectors, as the compiler makes none of a loop over so few bytes, which it unrolls.
    """
    numbers, floats = (ir.VectorType(each, LANES) for each in (ir.IntType(32), ir.FloatType()))
    packed = ir.VectorType(ir.IntType(8), LANES)

    def code(context, builder, signature, arguments):
        source, target, *terms = arguments
        nothing, firsts = ir.Constant(numbers, ir.Undefined), ir.Constant(numbers, None)
        first = ir.IntType(32)(0)
        shift, mask = (
            builder.shuffle_vector(builder.insert_element(nothing, term, first), nothing, firsts)
            for term in terms
        )
        levels = builder.load(builder.inttoptr(source, packed.as_pointer()), align=1)
        levels = builder.and_(builder.lshr(builder.zext(levels, numbers), shift), mask)
        place = builder.inttoptr(target, floats.as_pointer())
        builder.store(builder.sitofp(levels, floats), place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int32, types.int32), code


@intrinsic
def _dots(context, query, rows, dim, target):
    """Products of a query with `LANES` rows of float32, all at addresses. `LANES` divides `dim`.

    In vectors, too, as the compiler adds up the lanes of each row by itself; here neighbours are
    added in all rows at once, until one vector holds the sum of each.
    """
    floats, word = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)

    def code(context, builder, signature, arguments):
        query, rows, dim, target = arguments

        def place(address, number):
            address = builder.add(address, builder.mul(number, word(4)))
            return builder.inttoptr(address, floats.as_pointer())

        zero = ir.Constant(floats, None)
        sums = [cgutils.alloca_once(builder, floats) for _ in range(LANES)]
        for own in sums:
            builder.store(zero, own)
        with cgutils.for_range_slice(builder, word(0), dim, word(LANES), inc=True) as (i, _):
            asked = builder.load(place(query, i), align=4)
            for row, own in enumerate(sums):
                number = builder.add(builder.mul(dim, word(row)), i)
                product = builder.fmul(
                    asked, builder.load(place(rows, number), align=4), flags=["contract"]
                )
                builder.store(builder.fadd(builder.load(own), product, flags=["contract"]), own)
        pairs = ir.VectorType(ir.IntType(32), LANES)
        sides = [pairs(list(range(side, 2 * LANES, 2))) for side in (0, 1)]
        vectors = [builder.load(own) for own in sums]
        while len(vectors) > 1:
            vectors = [
                builder.fadd(*(builder.shuffle_vector(a, b, side) for side in sides))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        builder.store(vectors[0], place(target, word(0)), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), code


@_inline
def _floats(address, shape):
    return carray(_pointer(address), shape, np.float32)


@_inline
def _exponential(x):
    """e to the power of `x` (up to 88; 0 from -87 down): a polynomial times a power of 2 (Cephes,
    Moshier, 1992), which becomes vector instructions."""
    y = max(x, np.float32(-87.0))
    n = np.floor(y * np.float32(1.44269504) + np.float32(0.5))  # math.floor gives no float32
    y = y - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * y + np.float32(1.3981999507e-3)
    p = p * y + np.float32(8.3334519073e-3)
    p = p * y + np.float32(4.1665795894e-2)
    p = p * y + np.float32(1.6666665459e-1)
    p = p * y + np.float32(5.0000001201e-1)
    p = p * y * y + y + np.float32(1.0)
    p *= _as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return p if x >= np.float32(-87.0) else np.float32(0.0)


@_inline
def _ordered(bits):
    """Bits of float32 as numbers that are ordered as these are, and back."""
    return bits ^ np.int32((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_inline
def _highest(numbers, count):
    """The highest of the first numbers; found as integers, as floats might be NaN to the compiler,
    which then takes them one by one."""
    most = np.int32(-(2**31))
    for t in range(count):
        most = max(most, _ordered(_as_int(numbers[t])))
    return _as_float(_ordered(most))


@_inline
def _half(bits):
    """A float16 in float32, from its bits."""
    bits = np.int32(bits)
    moved = np.int32((bits & np.int32(0x8000)) << np.int32(16))
    moved |= np.int32((bits & np.int32(0x7FFF)) << np.int32(13))
    return _as_float(moved) * np.float32(2.0**112)  # the offset of exponents; subnormal, too


@_inline
def _unpack(bits, dim, address, first, count, numbers, least, step):
    """Levels of rows as float32, `(count, dim)`, with the least number and the step of each row."""
    codes = dim * bits // 8
    width = codes + 4
    mask = np.int32((1 << bits) - 1)
    rows = carray(_pointer(address + first * width), (count, width), np.uint8)
    wide = codes // LANES * LANES
    for t in range(count):
        row, own = address + (first + t) * width, numbers.ctypes.data + t * dim * 4
        for place in range(8 // bits):
            shift = np.int32(place * bits)
            for i in range(0, wide, LANES):
                _widen(row + i, own + (place * codes + i) * 4, shift, mask)
            for i in range(wide, codes):
                level = (np.int32(rows[t, i]) >> shift) & mask
                numbers[t, place * codes + i] = np.float32(level)
    scales = carray(_pointer(address + first * width), (count, width // 2), np.uint16)
    for t in range(count):
        least[t], step[t] = _half(scales[t, codes // 2]), _half(scales[t, codes // 2 + 1])


@_inline
def _products(dim, query, numbers, count, weights):
    """Products of a query with each of the rows; those behind the last are free."""
    if dim % LANES == 0:
        for t in range(0, count, LANES):
            rows = numbers.ctypes.data + t * dim * 4
            _dots(query.ctypes.data, rows, dim, weights.ctypes.data + t * 4)
    else:
        for t in range(count):
            product = np.float32(0.0)
            for i in range(dim):
                product += query[i] * numbers[t, i]
            weights[t] = product


@_inline
def _combine(dim, weights, numbers, count, sums):
    """Add the rows by their weights, eight at a time: what is behind the last weighs nothing."""
    for t in range(count, (count + 7) // 8 * 8):
        weights[t] = np.float32(0.0)
    for t in range(0, count, 8):
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        e, f, g, h = weights[t + 4], weights[t + 5], weights[t + 6], weights[t + 7]
        for i in range(dim):
            one = a * numbers[t, i] + b * numbers[t + 1, i]
            two = c * numbers[t + 2, i] + d * numbers[t + 3, i]
            three = e * numbers[t + 4, i] + f * numbers[t + 5, i]
            four = g * numbers[t + 6, i] + h * numbers[t + 7, i]
            sums[i] += (one + two) + (three + four)


@_inline
def _chunk(call, dim, key_bits, value_bits, place, low, high, part, scratch):
    """Attention to tokens `low` to `high` of one head: the sums of its values, unnormalised, and
    their norm and peak."""
    rows = call.rows
    query = _floats(call.query, (call.batch * call.heads, rows, dim))[place]
    centre = _floats(call.centre + place * dim * 4, dim)
    start = carray(_pointer(call.starts), call.heads, np.int64)[place % call.heads]
    base = place // call.heads * call.slots + start
    positions = carray(_pointer(call.positions), call.batch * call.slots, np.int32)
    numbers, least, step, weights, total, shift = scratch
    for r in range(rows):
        for i in range(dim + 1):
            part[r, i] = np.float32(0.0)
        part[r, dim + 1] = np.float32(-np.inf)
        total[r] = shift[r] = np.float32(0.0)
        for i in range(dim):
            total[r] += query[r, i]
            shift[r] += query[r, i] * centre[i]
    for first in range(low, high, BLOCK):
        count = min(BLOCK, high - first)
        _unpack(key_bits, dim, call.keys, base + first, count, numbers, least, step)
        for r in range(rows):
            w = weights[r]
            _products(dim, query[r], numbers, count, w)
            for t in range(count):
                w[t] = call.scaling * (w[t] * step[t] + total[r] * least[t] + shift[r])
            if call.softcap > 0:
                for t in range(count):
                    power = _exponential(np.float32(2.0) / call.softcap * w[t])
                    w[t] = call.softcap - np.float32(2.0) * call.softcap / (power + np.float32(1.0))
            if call.padded:
                for t in range(count):
                    if positions[base + first + t] < 0:
                        w[t] = np.float32(-np.inf)
            if call.received:
                noted = place // call.heads * rows + r
                logits = _floats(call.logits + (noted * call.slots + start + first) * 4, count)
                for t in range(count):
                    logits[t] = w[t]
            peak = part[r, dim + 1]
            most = max(peak, _highest(w, count))
            if most == -np.inf:
                for t in range(count):
                    w[t] = np.float32(0.0)
                continue
            norm = np.float32(0.0)
            for t in range(count):
                w[t] = _exponential(w[t] - most)
                norm += w[t]
            if peak != most:
                fade = _exponential(peak - most)
                for i in range(dim + 1):
                    part[r, i] *= fade
                part[r, dim + 1] = most
            part[r, dim] += norm
        _unpack(value_bits, dim, call.values, base + first, count, numbers, least, step)
        for r in range(rows):
            w, own = weights[r], part[r]
            lift = np.float32(0.0)
            for t in range(count):
                lift += w[t] * least[t]
                w[t] *= step[t]
            for i in range(dim):
                own[i] += lift
            _combine(dim, w, numbers, count, own)


@_inline
def _join(call, dim, place, parts):
    """The output of a head from its chunks, `parts`."""
    for r in range(call.rows):
        row = place * call.rows + r
        output = _floats(call.output + row * dim * 4, dim)
        most, norm = np.float32(-np.inf), np.float32(0.0)
        for k in range(len(parts)):
            most = max(most, parts[k, r, dim + 1])
        for i in range(dim):
            output[i] = np.float32(0.0)
        for k in range(len(parts)):
            if parts[k, r, dim + 1] > -np.inf:
                share = _exponential(parts[k, r, dim + 1] - most)
                norm += share * parts[k, r, dim]
                for i in range(dim):
                    output[i] += share * parts[k, r, i]
        if norm > 0:
            for i in range(dim):
                output[i] /= norm
            most += np.float32(math.log(norm))
        _floats(call.logsumexp, row + 1)[row] = most


@functools.cache
def _attend(dim: int, key_bits: int, value_bits: int):
    """What a thread does for a head dimension and bits, which are constants to the compiler."""

    @cfunc(_signature, cache=True, **_how)
    def attend(calls):
        call = carray(calls, 1)[0]
        rows, heads, chunks = call.rows, call.heads, call.chunks
        starts = carray(_pointer(call.starts), heads, np.int64)
        ends = carray(_pointer(call.ends), heads, np.int64)
        parts = _floats(call.parts, (chunks, rows, dim + 2))
        scratch = (
            np.zeros((BLOCK, dim), np.float32),  # what weighs nothing must not be NaN
            np.empty(BLOCK, np.float32),
            np.empty(BLOCK, np.float32),
            np.empty((rows, BLOCK), np.float32),
            np.empty(rows, np.float32),
            np.empty(rows, np.float32),
        )
        chunk = _take(call.taken)
        while chunk < chunks:
            place, low = 0, chunk
            length = ends[0] - starts[0]
            while low * CHUNK >= length:
                low -= (length + CHUNK - 1) // CHUNK
                place += 1
                length = ends[place % heads] - starts[place % heads]
            low *= CHUNK
            high = min(length, low + CHUNK)
            _chunk(call, dim, key_bits, value_bits, place, low, high, parts[chunk], scratch)
            chunk = _take(call.taken)
            if _take(call.done) == chunks - 1:
                first = 0
                for place in range(call.batch * heads):
                    length = ends[place % heads] - starts[place % heads]
                    last = first + (length + CHUNK - 1) // CHUNK
                    _join(call, dim, place, parts[first:last])
                    first = last

    return attend


@functools.cache
def _receive():
    """What a thread does to sum up the attention that tokens receive."""

    @cfunc(_signature, cache=True, **_how)
    def receive(calls):
        call = carray(calls, 1)[0]
        rows, heads, slots = call.rows, call.heads, call.slots
        starts = carray(_pointer(call.starts), heads, np.int64)
        ends = carray(_pointer(call.ends), heads, np.int64)
        place = _take(call.taken)
        while place < call.batch * heads:
            batch, head = place // heads, place % heads
            start, count = starts[head], ends[head] - starts[head]
            sums = _floats(call.sums + (batch * slots + start) * 4, count)
            for t in range(count):
                sums[t] = np.float32(0.0)
            for r in range(rows):
                logits = _floats(call.logits + ((batch * rows + r) * slots + start) * 4, count)
                whole = _floats(call.logsumexp, (place + 1) * rows)[place * rows + r]
                for t in range(count):
                    sums[t] += _exponential(logits[t] - whole)
            place = _take(call.taken)

    return receive


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
            halves[row, codes // 2] = _to_half(number, whole)
            least = number[0]
            number[0] = (x.max() - least) / most
            halves[row, codes // 2 + 1] = _to_half(number, whole)
            step = number[0] if number[0] > 0 else np.float32(1.0)
            for i in range(codes):
                code = 0
                for part in range(8 // bits):
                    level = np.rint((x[part * codes + i] - least) / step)
                    code |= int(min(max(level, np.float32(0.0)), most)) << part * bits
                stored[row, i] = code


@njit(cache=True, nogil=True)
def _to_half(number, whole):
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
    batch, heads, rows, head_dim = query.shape
    asked = query.float().contiguous()
    starts, ends = slots.bounds()
    chunks = batch * sum(-(-each.length // CHUNK) * len(each.heads) for each in slots.segments)
    total = slots.keys.shape[1]
    output = torch.empty_like(asked) if chunks else torch.zeros_like(asked)
    logsumexp = asked.new_full((batch, heads, rows), -math.inf)
    parts = asked.new_empty(chunks, rows, head_dim + 2)
    logits = asked.new_empty(batch, rows, total) if received else None
    sums = asked.new_empty(batch, total) if received else None
    centre = slots.coding.centre.contiguous()
    counters = (ctypes.c_int64 * 2)()
    call = _Call(
        taken=ctypes.addressof(counters),
        done=ctypes.addressof(counters) + 8,
        batch=batch, heads=heads, rows=rows, slots=total, chunks=chunks,
        received=received, padded=padded, scaling=scaling, softcap=softcap or 0.0,
        query=asked.data_ptr(),
        keys=slots.keys.data_ptr(),
        values=slots.values.data_ptr(),
        positions=slots.positions.data_ptr(),
        centre=centre.data_ptr(),
        starts=starts.data_ptr(),
        ends=ends.data_ptr(),
        parts=parts.data_ptr(),
        output=output.data_ptr(),
        logsumexp=logsumexp.data_ptr(),
        logits=logits.data_ptr() if received else 0,
        sums=sums.data_ptr() if received else 0,
    )  # fmt: skip
    _run(_attend(head_dim, *slots.bits()), call, chunks)
    if received:
        counters[0] = 0
        _run(_receive(), call, batch * heads)
    return output.to(query.dtype), logsumexp, sums


def _run(kernel, call: _Call, pieces: int) -> None:
    """Let torch's threads do a call, as many as there are pieces for."""
    team, threads = _team(), min(torch.get_num_threads(), pieces)
    if team is None or threads <= 1:
        kernel.ctypes(ctypes.addressof(call))
    else:
        team(kernel.address, ctypes.addressof(call), threads, 0)


@functools.cache
def _team():
    """How GNU's OpenMP, the one that torch has loaded, starts its threads
    (`GOMP_parallel` of gcc.gnu.org/onlinedocs/libgomp); None where torch has another."""
    try:
        team = ctypes.CDLL("libgomp.so.1").GOMP_parallel
    except (OSError, AttributeError):
        return None
    team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    team.restype = None
    return team


def _rows(stored: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows of bytes, and the same memory as bits of float16."""
    rows = stored.flatten(0, 1)
    return rows.numpy(), rows.view(torch.uint16).numpy()
