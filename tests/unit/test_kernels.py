"""The kernels of a decode step against the textbook formula in float64, and against the plain
operations that stand in where they cannot run."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch
from kernels import filled, textbook
from tiny import VOCABULARY, tiny_model
from torch.testing import assert_close

from kvbudget import attach, make_cache
from kvbudget.cache import kernels
from kvbudget.cache.kernels import attend_for
from kvbudget.cache.ragged import attend_densely

SHAPES = {
    "even": {"lengths": [70, 70, 70]},
    "ragged": {"lengths": [70, 3, 300], "batch": 2},
    "empty": {"lengths": [5, 0, 129], "batch": 2},
    "narrow": {"lengths": [40, 33], "head_dim": 16},
    "odd": {"lengths": [64, 65], "head_dim": 80},
    "wide": {"lengths": [90, 20], "head_dim": 256},
    "padded": {"lengths": [80, 70], "batch": 2, "padding": 66},
    "long": {"lengths": [3000, 200]},
}


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def kernel(request) -> ModuleType:
    """A kernel's module; that of a GPU is interpreted where there is none."""
    if request.param == "cpu":
        return pytest.importorskip("kvbudget.cache.kernels.cpu", exc_type=ImportError)
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the GPU's kernel is interpreted by Triton: pip install -e '.[triton]'")
    from kvbudget.cache.kernels import cuda

    return cuda


def device_of(kernel: ModuleType) -> str:
    return "cuda" if kernel.__name__.endswith("cuda") and torch.cuda.is_available() else "cpu"


def check(kernel: ModuleType, slots, query, **terms) -> None:
    """All that a kernel gives, with and without what tokens receive."""
    tolerance = {"atol": 1e-5, "rtol": 1e-5}
    if query.dtype != torch.float32:
        tolerance = {"atol": 2e-2, "rtol": 2e-2}
    output, logsumexp, received = kernel.attend(query, slots, **terms, received=True)
    expected, total, by_head = textbook(query, slots, **terms)
    assert output.dtype == query.dtype
    assert_close(output.double(), expected, **tolerance)
    assert_close(logsumexp.double(), total, **tolerance)
    for segment, own in zip(slots.segments, slots.by_segment(received), strict=True):
        for i, head in enumerate(segment.heads):
            if segment.length:
                assert_close(own[:, i].double(), by_head[head], **tolerance)
    again, _, nothing = kernel.attend(query, slots, **terms, received=False)
    assert nothing is None
    assert_close(again, output, **tolerance)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("rows", [1, 7, 70])
@pytest.mark.parametrize("bits", [(4, 4), (8, 2), (2, 8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_kernel_attends_as_the_formula_says(kernel, shape, bits, rows, softcap):
    if rows == 70 and shape == "long":
        rows = 20
    given = SHAPES[shape]
    slots = filled(**given, bits=bits, device=device_of(kernel))
    size = (given.get("batch", 1), len(given["lengths"]), rows, given.get("head_dim", 64))
    query = torch.randn(size, device=device_of(kernel))
    terms = {"scaling": size[-1] ** -0.5, "softcap": softcap, "padded": "padding" in given}
    check(kernel, slots, query, **terms)


@pytest.mark.parametrize("head_dim", [40, 112])  # compiled for each
def test_whatever_part_of_a_vector_fills_vectors_of_the_processor(head_dim):
    cpu = pytest.importorskip("kvbudget.cache.kernels.cpu", exc_type=ImportError)
    slots = filled([70, 3, 300], bits=(4, 2), head_dim=head_dim)
    query = torch.randn(1, 3, 3, head_dim)
    check(cpu, slots, query, scaling=head_dim**-0.5, softcap=None, padded=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [None, (4, 4)])
@pytest.mark.parametrize("shape", ["ragged", "padded"])
def test_in_every_dtype(kernel, shape, bits, dtype):
    if kernel.__name__.endswith("cpu") and bits is None:
        return  # PyTorch's own kernels are as fast there
    if device_of(kernel) == "cpu" and dtype == torch.bfloat16 and kernel.__name__.endswith("cuda"):
        return  # NumPy, which interprets, has no bfloat16
    given = SHAPES[shape]
    slots = filled(**given, bits=bits, dtype=dtype, device=device_of(kernel))
    size = (2, len(given["lengths"]), 3, 64)
    query = torch.randn(size, device=device_of(kernel), dtype=dtype)
    check(kernel, slots, query, scaling=0.125, softcap=None, padded="padding" in given)


def test_a_sequence_of_padding_alone_attends_to_nothing(kernel):
    slots = filled([70], batch=2, bits=(4, 4), padding=70, device=device_of(kernel))
    query = torch.randn(2, 1, 3, 64, device=device_of(kernel))
    terms = {"scaling": 1.0, "softcap": None, "padded": True, "received": True}
    output, logsumexp, received = kernel.attend(query, slots, **terms)
    assert (output[0] == 0).all() and (logsumexp[0] == float("-inf")).all()
    assert output[1].isfinite().all() and (received[0, :70] == 0).all()


def test_threads_share_the_tokens_and_change_no_bit():
    cpu = pytest.importorskip("kvbudget.cache.kernels.cpu", exc_type=ImportError)
    slots, query = filled([1300, 7, 640], bits=(4, 4)), torch.randn(1, 3, 2, 64)
    terms = {"scaling": 0.1, "softcap": None, "padded": False}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cpu.attend(query, slots, **terms, received=True))
    finally:
        torch.set_num_threads(before)
    check(cpu, slots, query, **terms)
    for other in found[1:]:
        assert other[0].equal(found[0][0]) and other[1].equal(found[0][1])
        told = (slots.by_segment(each[2]) for each in (other, found[0]))
        assert all(mine.equal(own) for mine, own in zip(*told, strict=True))


def test_callers_in_threads_of_their_own_do_not_meet():
    cpu = pytest.importorskip("kvbudget.cache.kernels.cpu", exc_type=ImportError)
    terms = {"scaling": 0.1, "softcap": None, "padded": False, "received": False}
    given = [(filled([900, 40], bits=(4, 4), seed=i), torch.randn(1, 2, 3, 64)) for i in range(8)]
    expected = [cpu.attend(query, slots, **terms)[0] for slots, query in given]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda each: cpu.attend(each[1], each[0], **terms)[0], given * 20)
        for mine, own in zip(found, expected * 20, strict=True):
            assert mine.equal(own)


def test_plain_operations_are_the_same_and_take_over_without_the_compiler(monkeypatch):
    slots, query = filled([50, 9], bits=(4, 4)), torch.randn(1, 2, 3, 64)
    terms = {"scaling": 0.1, "softcap": None, "padded": False}
    plain, received = attend_densely(query, slots, **terms)
    if kernel := attend_for(slots):
        output, _, told = kernel(query, slots, **terms, received=True)
        assert_close(output, plain, atol=1e-5, rtol=1e-5)
        for mine, own in zip(slots.by_segment(told), received, strict=True):
            assert_close(mine, own, atol=1e-5, rtol=1e-5)
    kernels._kernels.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert attend_for(slots) is None
    kernels._kernels.cache_clear()


@pytest.mark.parametrize(("bits", "head_dim"), [((4, 4), 64), ((8, 2), 80), ((2, 8), 16)])
def test_a_kernel_packs_a_token_as_plain_operations_do(kernel, bits, head_dim):
    device = device_of(kernel)
    slots = filled([5, 0, 9], batch=2, bits=bits, head_dim=head_dim, device=device)
    twin = slots.clone()
    for scale in (1.0, 1e-6, 300.0, 0.0):  # subnormal steps, wide ones, and all numbers equal
        size = (2, 3, 1, head_dim)
        keys, values = (scale * torch.randn(size, device=device) + 0.0 for _ in "kv")
        kernel.store(slots, keys, values)
        rows = twin.coding.encode(keys, values, [0, 1, 2])
        _, free = twin.bounds()
        for flat, new in zip((twin.keys, twin.values), rows, strict=True):
            flat.index_copy_(1, free, new[:, :, 0])
        for mine, own in zip((slots.keys, slots.values), (twin.keys, twin.values), strict=True):
            assert mine.equal(own)


def test_where_plain_operations_are_as_fast_they_are_used():
    assert attend_for(filled([50, 9])) is None


@torch.inference_mode()
@pytest.mark.parametrize("bounded", ["always", "context"])
@pytest.mark.parametrize("method", ["h2o", "tova", "keydiff"])
def test_a_model_says_the_same_with_and_without_a_kernel(method, bounded, monkeypatch):
    model = attach(tiny_model("llama"))
    ids = torch.randint(2, VOCABULARY, (1, 75), generator=torch.Generator().manual_seed(1))

    def logits() -> torch.Tensor:
        cache = make_cache(model, method, 20, bits=4, bounded=bounded)
        model(ids[:, :60], past_key_values=cache)
        pieces = [ids[:, 60:64], *ids[:, 64:].split(1, dim=1)]
        return torch.cat([model(each, past_key_values=cache).logits for each in pieces], dim=1)

    found = logits()
    monkeypatch.setattr(kernels, "_kernels", lambda device: None)
    # What follows is packed where it must fit into the budget: rounding may take another level.
    tolerance = 5e-3 if bounded == "always" else 1e-4
    assert_close(found, logits(), atol=tolerance, rtol=tolerance)
