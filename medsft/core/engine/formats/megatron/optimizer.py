"""The optimizer, schedule and random states that the original needs to go on training from a checkpoint."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsft.core.engine.formats.megatron import layout
from medsft.core.engine.formats.source import WeightSource

STATES = ("exp_avg", "exp_avg_sq", "master")
Key = tuple[int | None, str]
"""(global layer or None, key in the trainer's spelling)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """Adam's state, under the names of the weights it belongs to."""

    sources: Mapping[str, WeightSource]
    """`exp_avg`, `exp_avg_sq` and `master` (the fp32 weights): each read like weights, under the names of the weights."""
    step: int
    """Optimizer steps done."""
    lr: float
    """Learning rate for the next step."""
    max_lr: float
    min_lr: float
    warmup_samples: float
    decay_samples: int
    samples: int
    """Samples trained on; the schedule counts in them."""
    decay_style: str
    """`cosine`, `linear` or `constant`."""
    weight_decay: float
    betas: tuple[float, float]
    eps: float


def states_of(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the names of the states that are saved; weights trained in fp32 are their own masters."""
    return STATES[:2] if dtype == torch.float32 else STATES


def optimizer_content(
    state: OptimizerState, weights: Mapping[Key, Tensor], args: argparse.Namespace, *, tp_rank: int, stage: int
) -> tuple[dict[str, Any], dict[tuple[str, int | None, str], Tensor]]:
    """Return what a rank file holds beside the weights, and the tensors in it that are still to be filled.

    The original numbers parameters in the order of its modules, lm_head before the embedding, and keeps matrices (with
    weight decay) and norms (without) in two groups.
    """
    order = sorted(weights, key=lambda key: key[1] != layout.LM_HEAD)
    groups = [[key for key in order if weights[key].dim() == dim] for dim in (2, 1)]
    numbers = {key: number for number, key in enumerate([*groups[0], *groups[1]])}
    tensors: dict[tuple[str, int | None, str], Tensor] = {}

    def reserve(kind: str, key: Key) -> Tensor:
        tensors[kind, *key] = torch.empty(weights[key].shape, dtype=torch.float32)
        return tensors[kind, *key]

    adam = {number: {name: reserve(name, key) for name in STATES[:2]} for key, number in numbers.items()}
    inner: dict[str, Any] = {
        "state": adam,
        "param_groups": [
            _group(state, [numbers[key] for key in group], decay) for group, decay in zip(groups, (1.0, 0.0), strict=True)
        ],
    }
    if args.params_dtype == torch.float32:
        optimizer = inner
    else:
        optimizer = {
            "optimizer": inner,
            "fp32_from_fp16_params": [[reserve("master", key) for key in group] for group in groups],
        }
    schedule = {
        "max_lr": state.max_lr,
        "min_lr": state.min_lr,
        "lr_warmup_steps": state.warmup_samples,
        "lr_decay_steps": state.decay_samples,
        "lr_decay_style": state.decay_style,
        "num_steps": state.samples,
        "start_wd": state.weight_decay,
        "end_wd": state.weight_decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": state.decay_samples,
    }
    content = {
        "rng_state": [_rng_state(int(args.seed), tp_rank, stage)],
        "optimizer": optimizer,
        "opt_param_scheduler": schedule,
    }
    return content, tensors


def _group(state: OptimizerState, numbers: list[int], decay: float) -> dict[str, Any]:
    return {
        "lr": state.lr,
        "weight_decay": state.weight_decay * decay,
        "wd_mult": decay,
        "lr_mult": 1.0,
        "betas": state.betas,
        "eps": state.eps,
        "bias_correction": True,
        "step": state.step,
        "params": numbers,
    }


def _rng_state(seed: int, tp_rank: int, stage: int) -> dict[str, Any]:
    """Seed the generators as the original does at the start of a run: our own states mean nothing to it.

    numpy's words are a list, because arrays of numpy 2 cannot be unpickled by the numpy 1 of the original.
    """
    seed += 100 * stage
    numpy_state = np.random.RandomState(seed).get_state(legacy=False)
    return {
        "random_rng_state": random.Random(seed).getstate(),
        "np_rng_state": ("MT19937", numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"], 0, 0.0),
        "torch_rng_state": torch.Generator().manual_seed(seed).get_state(),
        "cuda_rng_state": _cuda_state(seed),
        "rng_tracker_states": {"model-parallel-rng": _cuda_state(seed + 2718 + tp_rank)},
    }


def _cuda_state(seed: int) -> Tensor:
    """Return the state of a CUDA generator that was just seeded: seed and offset, 8 bytes each."""
    return torch.tensor([seed, 0], dtype=torch.int64).view(torch.uint8)
