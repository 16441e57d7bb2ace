"""A micro-batch asks the device for nothing: on tensors without numbers that would fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder
from medsft.core.engine.parallel.master_weights import make_master_weights
from medsft.core.engine.train.batches import MicroBatch, RankBatch
from medsft.core.engine.train.head import LossHead
from medsft.core.engine.train.optim import squared_norm
from medsft.core.engine.train.step import SingleStage

LENGTHS = (40, 1, 23)
CONFIG = tiny.SMALL_MODEL
MESH: Any = SimpleNamespace(device=torch.device("cpu"), tp_rank=0, layout=SimpleNamespace(dp=1, tp=1))


def micro_batch():
    tokens, weights = torch.zeros(sum(LENGTHS), dtype=torch.int64), torch.ones(sum(LENGTHS))
    return MicroBatch(
        documents=(7, 8, 9),
        tokens=tokens,
        labels=tokens,
        weights=weights,
        answer=weights > 0,
        weighted=torch.arange(sum(LENGTHS)),
        sequences=PackedSequences.of(LENGTHS),
        weight_sum=float(sum(LENGTHS)),
    )


def batch():
    micros = (micro_batch(), micro_batch())
    return RankBatch(micros, weight_sum=128.0, tokens=128, supervised_tokens=128)


def test_nothing_waits_until_the_sums_are_read():
    with FakeTensorMode():
        decoder = Decoder(CONFIG)
        masters = make_master_weights(decoder, compute_dtype=torch.bfloat16, data_parallel=False)
        executor = SingleStage(decoder, LossHead(decoder, CONFIG.vocab_size, MESH), MESH)
        sums = executor.train(batch(), [0.1, 0.1])
        executor.validate(batch())
        squared_norm(masters, MESH, tied_copy=False)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            sums.loss.item()
        with pytest.raises(DynamicOutputShapeException):  # what this test would see
            torch.ones(3).nonzero()


def test_documents_of_a_bad_loss_are_named():
    decoder = Decoder(CONFIG)
    decoder.init_weights(0)
    executor = SingleStage(decoder, LossHead(decoder, CONFIG.vocab_size, MESH), MESH)
    assert executor.validate(batch()).bad_documents() == []
    with torch.no_grad():
        decoder.model.norm.weight[0] = torch.nan
    assert executor.validate(batch()).bad_documents() == [7, 8, 9, 7, 8, 9]
