"""The step of training on a GPU that is not there: devices, kernels, waits and live memory, at the sizes of real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeStep, fake_gpu, measure_step
from torch._subclasses.fake_tensor import FakeTensor

from medsft.core.config.lora import TARGETS, LoraSpec
from medsft.core.engine.kernels import nf4
from medsft.core.engine.nn.attention import PackedSequences, attend
from medsft.core.engine.nn.key_ranges import KeyRanges, attend_ranges
from medsft.core.models.config import ModelConfig


def llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        max_position_embeddings=8192,
        tie_embeddings=tied,
    )


WHOLE = {
    "135M": llama(30, 576, 1536, 9, 3, 49_152, tied=True),
    "1B": llama(16, 2048, 8192, 32, 8, 128_256, tied=True),
    "8B": llama(32, 4096, 14_336, 32, 8, 128_256, tied=False),
}
MODELS = {name: replace(model, num_layers=2) for name, model in WHOLE.items()}
"""As wide, and as short as shows what a layer does."""
LORA = LoraSpec(rank=16, alpha=32, targets=TARGETS)
SCORES = {"bmm", "baddbmm", "_softmax", "_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention"}
"""What attention that writes its scores is made of, and what pads."""


def attention_calls(step: FakeStep) -> dict[str, int]:
    assert not SCORES & set(step.kernels)
    return {name: count for name, count in step.kernels.items() if "attention" in name}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("size", MODELS)
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapter"])
def test_a_step_stays_on_the_gpu(size, recompute, lora):
    model = MODELS[size]
    step = measure_step(model, [700, 1, 300], 1, recompute, lora)
    assert attention_calls(step) == {
        "_flash_attention_forward": model.num_layers * (2 if recompute == "full" else 1),
        "_flash_attention_backward": model.num_layers,
    }
    assert step.kernels["_fused_adamw_"] == (1 if lora else 2)  # of matrices, and of norms
    assert step.resident_bytes < step.peak_bytes


def test_between_steps_there_are_weights_masters_and_moments():
    model = WHOLE["8B"]
    step = measure_step(model, [64])
    assert step.resident_bytes == pytest.approx((2 + 4 + 8) * model.num_parameters(), rel=1e-4)
    model = MODELS["8B"]
    beside = measure_step(model, [64], adapter=LORA)
    trained = sum(rows * columns for _, (rows, columns) in LORA.shapes(model))
    assert beside.resident_bytes == pytest.approx(2 * model.num_parameters() + (2 + 4 + 8) * trained, rel=1e-4)


def test_recomputing_takes_less_memory_and_more_kernels():
    steps = [measure_step(MODELS["1B"], [2048] * 4, 2, recompute) for recompute in ("none", "selective", "full")]
    peaks, kernels = [step.peak_bytes for step in steps], [sum(step.kernels.values()) for step in steps]
    assert peaks[0] > peaks[1] > peaks[2]
    assert kernels[0] < kernels[1] < kernels[2]


def test_micro_batches_take_turns_in_memory():
    two, four = (measure_step(MODELS["135M"], [512] * 4, count) for count in (2, 4))
    assert four.peak_bytes - two.peak_bytes <= 2 * 512  # the loss of each is kept, for the report
    assert four.syncs == two.syncs == {"_local_scalar_dense": 6}  # the six figures of an iteration, read at its end


@pytest.mark.parametrize("capability", [(9, 0), (7, 5)])
def test_fp32_keeps_no_scores(capability):
    model = MODELS["135M"]
    step = measure_step(model, [1500, 500], precision="fp32", capability=capability)
    assert attention_calls(step) == {
        "_efficient_attention_forward": model.num_layers,
        "_efficient_attention_backward": model.num_layers,
    }


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_windows_and_kept_keys(window, dtype):
    with fake_gpu() as watch:
        q, k, v = (torch.empty(60, heads, 64, dtype=dtype, device="cuda:0", requires_grad=True) for heads in (9, 3, 3))
        out = attend(q, k, v, PackedSequences.of([50, 10], "cuda:0"), window)
        out.sum().backward()
        assert [x.grad.shape for x in (q, k, v)] == [x.shape for x in (q, k, v)]
        assert out.device == q.device
        where = KeyRanges.of([1, 4], [((0, 30), (40, 41)), ((0, 10),)], "cuda:0")
        with torch.no_grad():
            seen = attend_ranges(q[:5], k, v, where, window)
        assert (seen.shape, seen.dtype, seen.device) == ((5, 9, 64), dtype, q.device)
        assert not SCORES & set(watch.kernels)


def test_constants_that_are_kept_for_a_cpu_have_numbers_afterwards():
    for kept in (nf4._constants, nf4._pairs, nf4._thresholds):
        kept.cache_clear()
    with fake_gpu():
        nf4._pairs(torch.device("cuda", 0))
    nf4._pairs.cache_clear()  # fake ones for a GPU belong to no other test
    for constants in (nf4._constants(torch.device("cpu")), nf4._thresholds(), nf4._pairs(torch.device("cpu"))):
        assert not isinstance(constants, FakeTensor)
