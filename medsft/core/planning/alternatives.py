"""Full fine-tuning (with 8-bit AdamW, too), LoRA and QLoRA side by side: what a run would need with each.

All at the same layout and micro-batch; one that does not fit there is shown as a plan of it would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from medsft.core.config.lora import FULL, FULL_8BIT, LORA, QLORA, kind_of
from medsft.core.config.run_config import RunConfig
from medsft.core.models.config import ModelConfig
from medsft.core.planning.adapter import BYTES, AdapterPlan
from medsft.core.planning.layout import Layout
from medsft.core.planning.memory import Workload, estimate_memory
from medsft.core.planning.optimizer import ADAMW, ADAMW8BIT, moment_bytes, weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """What a run needs with one kind of training."""

    name: str
    """`full`, `8-bit AdamW`, `LoRA` or `QLoRA`, see `FLAGS`."""
    chosen: bool
    """Whether the plan is for this kind."""
    memory: int
    """Bytes on the rank that needs most."""
    trained: int
    """Parameters."""
    checkpoint_bytes: int
    export_bytes: int
    """The finished model and the adapter, as `--export` asks for them."""


def adapter_of(config: RunConfig, *, precision: str, rows: int) -> AdapterPlan | None:
    """Return what a config wants trained beside a frozen model, None where it is the model itself.

    `precision` is the format of the computation, `rows` the number of tokens that the base model did not have.
    """
    if config.lora is None:
        return None
    return AdapterPlan(lora=config.lora, base_precision=config.base_precision or precision, rows=rows)


def checkpoint_bytes(model: ModelConfig, adapter: AdapterPlan | None, *, optimizer: str, precision: str) -> int:
    """Return the size of a checkpoint: what is trained as the optimizer updates it, and both moments."""
    trained = model.num_parameters() if adapter is None else adapter.trained(model)
    weight = weight_bytes(optimizer, bf16=precision == "bf16", adapter=adapter is not None)
    return math.ceil((weight + moment_bytes(optimizer)) * trained)


def export_bytes(model: ModelConfig, adapter: AdapterPlan | None, *, export: str, precision: str) -> int:
    """Return the size of what is written at the end, the whole model in the format of the computation."""
    whole = BYTES[precision] * model.num_parameters()
    if adapter is None or export == "merged":
        return whole
    return adapter.file_bytes(model) + (whole if export == "both" else 0)


def alternatives(
    config: RunConfig,
    model: ModelConfig,
    layout: Layout,
    work: Workload,
    *,
    precision: str,
    rows: int,
    device_memory: int,
    planned: Callable[[RunConfig], int],
) -> tuple[Alternative, ...]:
    """Return what each kind of training needs; nothing where `--compat` leaves no choice.

    A kind that needs more than `device_memory` at this layout and micro-batch needs what `planned` says of its config: a plan
    of its own would take smaller micro-batches, or compute activations again, before it does not fit.
    """
    if not config.rules.knows_adapters:
        return ()
    unquantized = None if config.base_precision == "nf4" else config.base_precision
    configs = {
        FULL: replace(config, adapter="none", base_precision=None, optimizer=ADAMW),
        FULL_8BIT: replace(config, adapter="none", base_precision=None, optimizer=ADAMW8BIT),
        LORA: replace(config, adapter="lora", base_precision=unquantized),
        QLORA: replace(config, adapter="lora", base_precision="nf4"),
    }
    found = []
    for name, other in configs.items():
        adapter = adapter_of(other, precision=precision, rows=rows)
        chosen = name == kind_of(config.adapter, config.base_precision, config.optimizer)
        memory = estimate_memory(model, layout, replace(work, optimizer=other.optimizer), adapter=adapter).total
        if memory > device_memory and not chosen:
            memory = min(memory, planned(other))
        found.append(
            Alternative(
                name=name,
                chosen=chosen,
                memory=memory,
                trained=model.num_parameters() if adapter is None else adapter.trained(model),
                checkpoint_bytes=checkpoint_bytes(model, adapter, optimizer=other.optimizer, precision=precision),
                export_bytes=export_bytes(model, adapter, export=config.export, precision=precision),
            )
        )
    return tuple(found)
