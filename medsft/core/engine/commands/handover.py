"""What a run of ours can hand over to the original's trainer beside the weights: arguments, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medsft.core.engine.formats.dcp import open_dcp
from medsft.core.engine.formats.megatron.optimizer import OptimizerState
from medsft.core.models.inspect import BaseModel
from medsft.core.models.run_folder import read_manifest
from medsft.core.planning.schedule import learning_rate
from medsft.core.run.launch import load_plan
from medsft.core.run.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run as the original would describe it."""

    vocab_size: int
    """Rows of the tables that belong to tokens."""
    arguments: Mapping[str, Any]
    """Names and units as in the original's `args`."""
    optimizer: OptimizerState


def run_state(base: BaseModel) -> RunState:
    """Read plan and checkpoint of a run. Raises `MismatchError` when the plan is of another version."""
    run = RunDir(base.path)
    plan = load_plan(run)
    iteration = int(read_manifest(base.weights)["state"]["iteration"])
    config = plan.config
    samples, all_samples = iteration * plan.global_batch, plan.num_iterations * plan.global_batch
    return RunState(
        vocab_size=plan.base.model.vocab_size,
        arguments={
            "train_iters": plan.num_iterations,
            "curr_iteration": iteration - 1,
            "consumed_train_samples": samples,
            "global_batch_size": plan.global_batch,
            "micro_batch_size": plan.micro_batch,
            "seed": config.seed,
            "lr": config.lr,
            "min_lr": config.min_lr,
            "lr_decay_style": "cosine",
            "lr_warmup_fraction": config.warmup_fraction,
            "weight_decay": config.weight_decay,
            "adam_beta1": config.adam_beta1,
            "adam_beta2": config.adam_beta2,
            "adam_eps": config.adam_eps,
            "clip_grad": config.clip_grad,
            "data_type": "instruction",
            "scalar_loss_mask": config.loss_mask,
        },
        optimizer=OptimizerState(
            sources={
                "exp_avg": open_dcp(base.weights, "exp_avg"),
                "exp_avg_sq": open_dcp(base.weights, "exp_avg_sq"),
                "master": open_dcp(base.weights),
            },
            step=iteration,
            lr=learning_rate(config, iteration + 1, plan.num_iterations),
            max_lr=config.lr,
            min_lr=config.min_lr,
            warmup_samples=config.warmup_fraction * all_samples,
            decay_samples=all_samples,
            samples=samples,
            decay_style="cosine",
            weight_decay=config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
        ),
    )
