from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medsft.core.engine.nn.loss import VocabShard, weighted_nll

T, H, V, ROWS = 29, 8, 40, 48

pytestmark = pytest.mark.distributed


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, generator=generator).requires_grad_()
    head = torch.randn(ROWS, H, generator=generator)
    labels = torch.randint(V, (T,), generator=generator)
    weights = torch.randint(3, (T,), generator=generator) / 2
    labels[::3] = (hidden @ head[:V].T).argmax(-1)[::3]
    return hidden, head, labels, weights


def one_rank(rank: int, cuts: list[int], vocab_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(cuts) - 1)
    hidden, head, labels, weights = inputs()
    labels %= vocab_size
    own = head[cuts[rank] : cuts[rank + 1]].clone().requires_grad_()
    shard = VocabShard(cuts[rank], dist.group.WORLD)
    sums = weighted_nll(hidden, own, labels, weights, vocab_size=vocab_size, shard=shard, chunk_rows=8)
    sums.loss.backward()
    with torch.no_grad():
        correct = weighted_nll(hidden, own, labels, weights, vocab_size=vocab_size, shard=shard).correct
    torch.save((sums.loss.detach(), sums.nll, correct, hidden.grad, own.grad), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("cuts", "vocab_size"), [([0, 24, 48], 40), ([0, 16, 32, 48], 30), ([0, 24, 48], 20)])
def test_ranks_together_are_one(tmp_path, cuts, vocab_size):
    mp.start_processes(one_rank, (cuts, vocab_size, str(tmp_path)), nprocs=len(cuts) - 1, start_method="fork")
    losses, nlls, corrects, hidden_grads, head_grads = zip(
        *(torch.load(tmp_path / f"{rank}.pt") for rank in range(len(cuts) - 1)), strict=True
    )
    hidden, head, labels, weights = inputs()
    labels %= vocab_size
    head.requires_grad_()
    sums = weighted_nll(hidden, head, labels, weights, vocab_size=vocab_size)
    sums.loss.backward()
    with torch.no_grad():
        correct = weighted_nll(hidden, head, labels, weights, vocab_size=vocab_size).correct
    assert correct.any()
    for loss, nll, found in zip(losses, nlls, corrects, strict=True):
        torch.testing.assert_close(loss, sums.loss.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(nll, sums.nll, atol=1e-5, rtol=1e-5)
        assert torch.equal(found, correct)
    torch.testing.assert_close(sum(hidden_grads), hidden.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(head_grads), head.grad, atol=1e-5, rtol=1e-5)
