"""What a GPU computes by libraries, as far as a CPU can show it: the formulas, and that nothing reads memory that was taken."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch._decomp import decomposition_table

from bench.fast_paths import errors, fast_paths
from medsft.core.config.lora import LoraSpec
from medsft.core.engine.kernels import cpu, cuda
from medsft.core.engine.kernels.cuda import liger
from medsft.core.engine.kernels.reference import REFERENCE_ONLY, reference_only
from medsft.core.engine.nn import fused
from medsft.core.engine.nn.adapters import Adapter
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder

CPU = torch.device("cpu")
LENGTHS = (40, 1, 23)
CONFIG = replace(tiny.SMALL_MODEL, family="qwen3", tie_embeddings=True, qk_norm=True)


class TakesMemory(torch.autograd.Function):
    """SwiGLU as Liger has it: the gradients of gate and up are written where gate and up were."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        gate_grad, up_grad = torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate) * grad
        gate.data.copy_(gate_grad)  # `data`, for the kernel does not tell autograd of it either
        up.data.copy_(up_grad)
        return gate, up


def turn(heads, cos, sin):
    """Rotate [1, H, T, d] in place, as Liger does, by tables [1, T, d / 2]."""
    first, second = (half.clone() for half in heads.data.chunk(2, dim=-1))
    heads.data.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
    return heads.transpose(1, 2).transpose(1, 2)


class TurnsInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin, *_):
        ctx.save_for_backward(cos, sin)
        return turn(q, cos, sin), turn(k, cos, sin), cos.view_as(cos), sin.view_as(sin)

    @staticmethod
    def backward(ctx, q_grad, k_grad, *_):
        cos, sin = ctx.saved_tensors
        return turn(q_grad, cos, -sin), turn(k_grad, cos, -sin), *[None] * 5


class FailsToCompile:
    @staticmethod
    def apply(*_):
        raise RuntimeError("Failed to find C compiler.\nSet CC.")


class ForgetsTheSines:
    @staticmethod
    def apply(q, k, cos, sin, *others):
        return TurnsInPlace.apply(q, k, cos, sin * 0, *others)


INTERPRETED = """
import torch
from bench.fast_paths import errors, fast_paths
from liger_kernel.ops import swiglu
from medsft.core.engine.kernels.cuda import liger
from medsft.core.engine.nn import fused

class Number(float):
    def to(self, dtype):
        return self

swiglu.float = Number  # compiled kernels get numbers that can be converted, the interpreter's do not
liger._TRIED = (torch.float32,)  # bf16 numbers become nan there
cpu = torch.device("cpu")
found = liger.on_device(cpu)
assert found.works, found
fused.liger_for = lambda *_: liger
for path in fast_paths():
    if path.name in ("SwiGLU", "rotation"):
        found = errors(path, torch.float32, cpu)
        assert found.small, (path.name, found)
"""
LIKE_LIGER: dict[str, Any] = {"swiglu": TakesMemory, "rope": TurnsInPlace}


@pytest.fixture
def library(monkeypatch):
    """A stand-in for the library, of the version 9.9."""

    def install(functions):
        liger.on_device.cache_clear()
        monkeypatch.setattr(liger.importlib.metadata, "version", lambda _: "9.9")
        monkeypatch.setattr(liger, "_function", lambda module, _: functions[module])

    yield install
    liger.on_device.cache_clear()


@pytest.fixture
def as_on_a_gpu(monkeypatch, library):
    """Layers take the way of a GPU: norms in two calls, SwiGLU and rotation by a library that takes memory."""
    library(LIKE_LIGER)
    backward = decomposition_table[torch.ops.aten._fused_rms_norm_backward.default]

    def norm_backward(x, weight, inverse, grad):
        grads = backward(grad, x, weight.shape, inverse, weight, [True, weight.requires_grad])
        return grads[0].to(x.dtype), None if grads[1] is None else grads[1].to(weight.dtype)

    norms = SimpleNamespace(rms_norm=cuda.rms_norm, rms_norm_backward=norm_backward)
    monkeypatch.setattr(fused, "norms_for", lambda *_: norms)
    monkeypatch.setattr(fused, "liger_for", lambda *_: liger)
    monkeypatch.setattr(cpu, "supports", lambda *_: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("path", fast_paths(), ids=lambda path: path.name)
def test_each_fast_path_is_about_as_exact_as_its_formula(path, dtype):
    found = errors(path, dtype, CPU)
    assert found.small, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["norm", "norm of heads", "SwiGLU", "rotation"])
def test_the_way_of_a_gpu_is_about_as_exact_as_the_formula(name, dtype, as_on_a_gpu):
    (path,) = (path for path in fast_paths() if path.name == name)
    found = errors(path, dtype, CPU)
    assert found.small, found


def gradients(recompute, adapter=None):
    """Return loss and gradients of a model."""
    decoder = Decoder(CONFIG, adapter=adapter)
    decoder.init_weights(0)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(adapter is None or "lora" in name)
    for layer in decoder.model.layers.values():
        layer.recompute = recompute
    tokens = torch.arange(sum(LENGTHS)) * 5 % CONFIG.vocab_size
    loss = decoder(tokens, PackedSequences.of(LENGTHS)).float().square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in decoder.parameters() if p.requires_grad)]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("adapted", [False, True])
def test_nothing_reads_memory_that_a_kernel_took(recompute, adapted, request):
    spec = LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "k_proj", "up_proj", "down_proj"))
    adapter = Adapter(lora=spec, base_precision="fp32") if adapted else None
    plain = gradients(recompute, adapter)
    request.getfixturevalue("as_on_a_gpu")
    torch.testing.assert_close(gradients(recompute, adapter), plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("functions", "problem"),
    [
        (LIKE_LIGER, ""),
        (LIKE_LIGER | {"swiglu": FailsToCompile}, "RuntimeError: Failed to find C compiler."),
        (LIKE_LIGER | {"rope": ForgetsTheSines}, "wrong results of rotation in float32 and rotation in bfloat16"),
    ],
    ids=["right", "fails", "wrong"],
)
def test_kernels_are_tried_before_they_are_used(functions, problem, library):
    library(functions)
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = liger.on_device(CPU)
    assert found == liger.Liger("9.9", problem)
    assert found.works == (not problem)
    assert torch.equal(torch.get_rng_state(), state)
    assert cuda.identity(CPU) == ("fused norms, Liger 9.9" if not problem else "fused norms")
    assert cuda.problem(CPU) == problem


def test_without_the_library_there_is_no_problem(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    liger.on_device.cache_clear()
    monkeypatch.setattr(liger.importlib.metadata, "version", missing)
    assert liger.on_device(CPU) == liger.Liger("")
    assert not liger.on_device(CPU).works
    liger.on_device.cache_clear()


def like_a_tensor(**properties: Any) -> Any:
    return SimpleNamespace(**properties)


def test_kernels_of_a_gpu_leave_other_tensors_alone(monkeypatch):
    assert not cuda.takes(torch.ones(2, 2))
    on_gpu = like_a_tensor(is_cuda=True, dtype=torch.bfloat16)
    assert cuda.takes(on_gpu, on_gpu)
    assert not cuda.takes(on_gpu, like_a_tensor(is_cuda=True, dtype=torch.float32))
    assert not cuda.takes(on_gpu, like_a_tensor(is_cuda=False, dtype=torch.bfloat16))
    monkeypatch.setattr(cuda, "is_traceable_wrapper_subclass", lambda _: True)
    assert not cuda.takes(on_gpu)


def test_one_variable_keeps_all_kernels_out(monkeypatch):
    reference_only.cache_clear()
    cpu._load.cache_clear()
    monkeypatch.setenv(REFERENCE_ONLY, "1")
    try:
        assert not cpu.supports(torch.ones(2, 2))
        assert not cuda.takes(like_a_tensor(is_cuda=True, dtype=torch.bfloat16))
        assert cuda.identity(CPU) == ""
    finally:
        reference_only.cache_clear()
        cpu._load.cache_clear()


def test_the_kernels_of_liger_in_the_interpreter_of_triton():
    pytest.importorskip("triton")
    pytest.importorskip("liger_kernel")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
