from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medsft.core.engine.nn import loss as loss_module
from medsft.core.engine.nn.loss import weighted_nll
from medsft.core.planning import memory

T, H, V = 37, 12, 50


def inputs(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, H, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(V, (T,), generator=generator)
    weights = torch.randint(3, (T,), generator=generator) / 2
    labels[weights == 0] = -1
    return hidden, head, labels, weights


def plain(hidden, head, labels, weights):
    """The definition: all logits at once, in fp32."""
    nll = F.cross_entropy((hidden @ head.T).float(), labels.clamp(min=0), reduction="none")
    return (nll * weights).sum(), nll


def gradients(loss, *tensors):
    return torch.autograd.grad(loss * 0.7, tensors)


@pytest.mark.parametrize("chunk_rows", [1, 8, 1000, None])
def test_equals_cross_entropy(chunk_rows):
    hidden, head, labels, weights = inputs()
    sums = weighted_nll(hidden, head, labels, weights, vocab_size=V, chunk_rows=chunk_rows)
    loss, nll = plain(hidden, head, labels, weights)
    torch.testing.assert_close(sums.loss, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sums.nll, nll.detach() * (weights > 0), atol=1e-5, rtol=1e-5)
    for ours, expected in zip(gradients(sums.loss, hidden, head), gradients(loss, hidden, head), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_tokens_that_are_known_to_count_are_not_looked_for():
    hidden, head, labels, weights = inputs()
    rows = weights.nonzero().squeeze(1)
    found = weighted_nll(hidden, head, labels, weights, vocab_size=V)
    known = weighted_nll(hidden, head, labels, weights, vocab_size=V, rows=rows)
    torch.testing.assert_close((known.loss, known.nll), (found.loss, found.nll), atol=0, rtol=0)


def test_padded_rows_take_no_part():
    hidden, head, labels, weights = inputs()
    labels %= 40
    ours = weighted_nll(hidden, head, labels, weights, vocab_size=40, chunk_rows=8).loss
    expected, _ = plain(hidden, head[:40], labels, weights)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(gradients(ours, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_rows", [8, 1000])
def test_bf16_is_as_good_as_the_plain_way(chunk_rows):
    hidden, head, labels, weights = inputs(torch.bfloat16)
    exact, _ = plain(hidden.float(), head.float(), labels, weights)
    exact_grads = gradients(exact, hidden, head)
    sums = weighted_nll(hidden, head, labels, weights, vocab_size=V, chunk_rows=chunk_rows)
    assert sums.loss.dtype == torch.float32
    torch.testing.assert_close(sums.loss, exact, rtol=5e-3, atol=0)
    for ours, expected in zip(gradients(sums.loss, hidden, head), exact_grads, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - expected).norm() < 0.02 * expected.norm()


def test_evaluation_counts_the_most_likely_labels():
    hidden, head, labels, weights = inputs()
    best = (hidden @ head.T).argmax(-1)
    labels[::2] = best[::2]
    with torch.no_grad():
        sums = weighted_nll(hidden, head, labels, weights, vocab_size=V, chunk_rows=8)
    assert torch.equal(sums.correct, (labels == best) & (weights > 0))
    assert 0 < sums.correct.sum() < (weights > 0).sum()
    torch.testing.assert_close(sums.loss, plain(hidden, head, labels, weights)[0].detach(), atol=1e-5, rtol=1e-5)


def test_nothing_supervised_gives_zero_and_zero_gradients():
    hidden, head, labels, weights = inputs()
    sums = weighted_nll(hidden, head, labels, torch.zeros_like(weights), vocab_size=V)
    assert sums.loss.item() == 0.0
    assert all(grad.abs().sum() == 0 for grad in gradients(sums.loss, hidden, head))


def test_a_frozen_head_still_passes_the_gradient_on():
    hidden, head, labels, weights = inputs()
    expected = gradients(plain(hidden, head, labels, weights)[0], hidden)[0]
    ours = gradients(weighted_nll(hidden, head.detach(), labels, weights, vocab_size=V).loss, hidden)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_no_more_logits_exist_at_once_than_the_memory_plan_counts(monkeypatch):
    assert loss_module.LOGITS_BYTES is memory.LOGITS_BYTES
    limit, multiply, sizes = 5 * 4 * V, loss_module.matmul, []

    def recording(a, b, out=None):
        product = multiply(a, b, out)
        if product.shape[1] == V:
            sizes.append(4 * product.numel())
        return product

    monkeypatch.setitem(loss_module.LOGITS_BYTES, "cpu", limit)
    monkeypatch.setattr(loss_module, "matmul", recording)
    hidden, head, labels, weights = inputs()
    ours = weighted_nll(hidden, head, labels, weights, vocab_size=V).loss
    torch.testing.assert_close(ours, plain(hidden, head, labels, weights)[0], atol=1e-5, rtol=1e-5)
    assert max(sizes) == limit
    assert len(sizes) == -(-int((weights > 0).sum()) // 5)


def test_frozen_layers_get_no_gradient_from_a_trained_head():
    hidden, head, labels, weights = inputs()
    expected = gradients(plain(hidden, head, labels, weights)[0], head)[0]
    loss = weighted_nll(hidden.detach(), head, labels, weights, vocab_size=V, chunk_rows=8).loss
    torch.testing.assert_close(gradients(loss, head)[0], expected, atol=1e-5, rtol=1e-5)
