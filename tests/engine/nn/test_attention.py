from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch

from medsft.core.engine.kernels import cpu
from medsft.core.engine.nn.attention import PackedSequences, attend


def plain(q, k, v, lengths, window=None):
    """The definition: one masked softmax over the whole stream."""
    total, heads, size = q.shape
    group = heads // k.shape[1]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    seen = (document[:, None] == document) & (distance >= 0) & (distance < (window or total))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def inputs(lengths, heads, kv_heads, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(lengths), count, size) for count in (heads, kv_heads, kv_heads, heads)]
    q, k, v, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), weight


CASES = [
    ((1,), None),
    ((5, 1, 40, 1, 17), None),
    ((5, 1, 40, 1, 17), 6),
    ((5, 1, 40, 1, 17), 1),
    ((64, 64, 64), None),
    ((300, 129, 128), None),
    ((300, 129, 128), 50),
    ((300, 129, 128), 200),
    ((520, 3), 130),
]


@pytest.mark.parametrize(("lengths", "window"), CASES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 16), (2, 2, 8), (3, 1, 24)])
def test_equals_a_masked_softmax(lengths, window, heads, kv_heads, size):
    *qkv, weight = inputs(lengths, heads, kv_heads, size)
    ours = attend(*qkv, PackedSequences.of(lengths), window)
    expected = plain(*qkv, lengths, window)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    got, want = (torch.autograd.grad((out * weight).sum(), qkv) for out in (ours, expected))
    for ours, expected in zip(got, want, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("lengths", "window"), CASES)
def test_bf16_is_as_good_as_the_plain_way(lengths, window):
    *qkv, weight = inputs(lengths, 6, 2, 16, torch.bfloat16)
    outputs = []
    for function, dtype in ((attend, torch.bfloat16), (plain, torch.bfloat16), (plain, torch.float32)):
        where = PackedSequences.of(lengths) if function is attend else lengths
        out = function(*(x.to(dtype) for x in qkv), where, window)
        assert out.dtype == dtype
        outputs.append([out, *torch.autograd.grad((out * weight).sum(), qkv)])
    for ours, plain_bf16, exact in zip(*outputs, strict=True):
        # In a window of 1 the exact gradient of a score is 0, which sums in another order reach but for rounding.
        scale = exact.float().norm() + 1e-3
        error, plain_error = ((x.float() - exact.float()).norm() / scale for x in (ours, plain_bf16))
        assert error < max(1.5 * plain_error, 0.01)


def test_documents_do_not_see_each_other():
    lengths = (20, 13, 1, 30)
    q, k, v, _ = inputs(lengths, 4, 2, 16)
    together = attend(q, k, v, PackedSequences.of(lengths))
    for start, end in pairwise([0, *accumulate(lengths)]):
        alone = attend(q[start:end], k[start:end], v[start:end], PackedSequences.of([end - start]))
        torch.testing.assert_close(together[start:end], alone)


def test_packed_sequences_describe_their_documents():
    sequences = PackedSequences.of([3, 1, 2])
    assert sequences.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert sequences.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert sequences.max_seqlen == 3


@pytest.mark.parametrize(("lengths", "window"), CASES)
def test_without_kernels(lengths, window, monkeypatch):
    *qkv, weight = inputs(lengths, 6, 2, 16)
    results = []
    for _ in range(2):
        out = attend(*qkv, PackedSequences.of(lengths), window)
        results.append([out, *torch.autograd.grad((out * weight).sum(), qkv)])
        monkeypatch.setattr(cpu, "supports", lambda *_, **__: False)
    torch.testing.assert_close(*results, atol=2e-5, rtol=1e-5)


@pytest.mark.skipif(cpu.library() is None, reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernels_do_not_depend_on_the_number_of_threads(dtype):
    *qkv, weight = inputs((300, 129, 7), 6, 2, 16, dtype)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = attend(*qkv, PackedSequences.of((300, 129, 7)))
            results.append([out, *torch.autograd.grad((out * weight).sum(), qkv)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("size", [64, 80, 128])
def test_heads_as_wide_as_in_real_models(size):
    *qkv, weight = inputs((130, 65), 4, 2, size)
    ours, expected = attend(*qkv, PackedSequences.of((130, 65))), plain(*qkv, (130, 65))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    got, want = (torch.autograd.grad((out * weight).sum(), qkv) for out in (ours, expected))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
