"""Queries that see keys from elsewhere, against one masked softmax over all rows."""

from __future__ import annotations

import pytest
import torch

from medsft.core.engine.kernels import cpu
from medsft.core.engine.nn.attention import PackedSequences, attend
from medsft.core.engine.nn.key_ranges import KeyRanges, attend_ranges

ROWS = 400
CASES: dict[str, tuple[tuple[int, ...], list[tuple[tuple[int, int], ...]]]] = {
    "one token after many": ((1,), [((0, 130),)]),
    "each on its own": ((3, 70, 1), [((0, 3),), ((3, 73),), ((80, 81),)]),
    "a beginning that all share": ((5, 1, 90), [((0, 64), (70, 75)), ((0, 64), (75, 76)), ((0, 64), (76, 166))]),
    "pages out of order": ((1, 2), [((320, 384), (0, 64), (128, 150)), ((256, 320), (64, 65), (66, 67))]),
    "fewer queries than they have rows of their own": ((17,), [((10, 400),)]),
}
WINDOWS = (None, 1, 40, 130)


def plain(q, k, v, lengths, ranges, window):
    """The definition: for each query the softmax over the rows that it sees."""
    group, out, at = q.shape[1] // k.shape[1], [], 0
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    for length, own in zip(lengths, ranges, strict=True):
        rows = torch.tensor([row for start, end in own for row in range(start, end)])
        for number in range(length):
            seen = rows[: len(rows) - length + number + 1][-(window or ROWS) :]
            scores = torch.einsum("hd,khd->hk", q[at], k[seen]) / q.shape[2] ** 0.5
            out.append(torch.einsum("hk,khd->hd", scores.softmax(-1), v[seen]))
            at += 1
    return torch.stack(out)


def inputs(total, heads, kv_heads, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(total, heads, size), (ROWS, kv_heads, size), (ROWS, kv_heads, size)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_softmax_over_the_rows_that_are_seen(case, window, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(cpu, "supports", lambda *_: False)
    lengths, ranges = CASES[case]
    for heads, kv_heads, size in ((6, 2, 16), (3, 1, 24), (8, 8, 8)):
        qkv = inputs(sum(lengths), heads, kv_heads, size)
        ours = attend_ranges(*qkv, KeyRanges.of(lengths, ranges), window)
        torch.testing.assert_close(ours, plain(*qkv, lengths, ranges, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_bf16_is_as_good_as_the_plain_way(case):
    lengths, ranges = CASES[case]
    qkv = inputs(sum(lengths), 6, 2, 16, torch.bfloat16)
    ours = attend_ranges(*qkv, KeyRanges.of(lengths, ranges))
    assert ours.dtype == torch.bfloat16
    exact = plain(*(x.float() for x in qkv), lengths, ranges, None)
    plainly = plain(*qkv, lengths, ranges, None)
    error, plain_error = ((x.float() - exact).norm() / exact.norm() for x in (ours, plainly))
    assert error < max(1.5 * plain_error, 0.01)


def test_documents_on_their_own_are_those_of_training():
    lengths = (300, 1, 99)
    q, k, v = inputs(ROWS, 6, 2, 16)
    where = KeyRanges.of(lengths, [((0, 300),), ((300, 301),), ((301, 400),)])
    torch.testing.assert_close(
        attend_ranges(q, k, v, where), attend(q, k, v, PackedSequences.of(lengths)), atol=1e-5, rtol=1e-5
    )
