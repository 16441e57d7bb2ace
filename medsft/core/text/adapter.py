"""What a run trains, in words: an adapter and its base, the optimizer, and the kinds of training beside one another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from medsft.core.config.lora import FLAGS, FULL, TARGET_GROUPS, TARGETS, kind_of
from medsft.core.planning.optimizer import ADAMW8BIT, has_fp32_masters
from medsft.core.printable import one_line
from medsft.core.units import byte_size, counted, short_count

if TYPE_CHECKING:
    from medsft.core.planning.adapter import AdapterPlan
    from medsft.core.planning.alternatives import Alternative
    from medsft.core.planning.plan import RunPlan

_BAR_WIDTH = 24
_FILLED, _BEYOND, _FREE = "█", "▒", "·"


def adapter_text(adapter: AdapterPlan) -> str:
    """Return `LoRA of rank 16, alpha 32, on all linear layers, over a base in nf4`."""
    lora = adapter.lora
    scale = ", scaled by the root of the rank" if lora.rslora else ""
    made_of = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}{scale}"
    return f"{made_of}, on {targets_text(lora.targets)}, over a base in {adapter.base_precision}"


def targets_text(targets: tuple[str, ...]) -> str:
    """Return in words which linear layers have an adapter."""
    if targets == TARGETS:
        return "all linear layers"
    group = next((name for name, members in TARGET_GROUPS.items() if members == targets), None)
    return f"the linear layers of {'the feed-forward part' if group == 'mlp' else group}" if group else ", ".join(targets)


def trained_text(plan: RunPlan, rows: int | None = None) -> str:
    """Return how many parameters are trained, and which part of the model that is.

    `rows` is the number of rows of tokens that the training has found to be new, or never trained before; None: those of the
    plan, which knows the new ones.
    """
    model = plan.base.model
    total = model.num_parameters()
    if plan.adapter is None:
        return f"all {short_count(total)} parameters"
    adapter = plan.adapter if rows is None else replace(plan.adapter, rows=rows)
    trained = adapter.trained(model)
    kind = "new token" if adapter.rows == plan.adapter.rows else "new or untrained token"
    also = f", with the rows of {counted(adapter.rows, kind)}" if adapter.rows else ""
    return f"{short_count(trained)} parameters, {trained / total:.2%} of the model's {short_count(total)}{also}"


def start_text(plan: RunPlan) -> str:
    """Return in Markdown which adapter a run began with; nothing where it began a new one, or trains all weights."""
    start = plan.base.adapter
    return "" if start is None else f"the adapter `{one_line(start.path)}`, fingerprint `{start.fingerprint}`"


def kind_bars(plan: RunPlan) -> list[tuple[Alternative, str, str]]:
    """Return each kind of training with a bar of its memory per rank against that of the device, and the memory in words."""
    estimates = plan.estimates
    scale = max([estimates.device_memory, *(kind.memory for kind in estimates.alternatives)])
    found = []
    for kind in estimates.alternatives:
        verdict = "fits" if kind.memory <= estimates.device_memory else "does not fit"
        bar = _bar(kind.memory, estimates.device_memory, scale)
        found.append((kind, bar, f"{byte_size(kind.memory)}, {verdict}"))
    return found


def alternatives_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Return for each kind of training its name, and what it needs: memory with a bar, a checkpoint, the flags.

    Nothing where a plan has no choice.
    """
    rows = []
    for kind, bar, needs in kind_bars(plan):
        here = "this plan" if kind.chosen else FLAGS[kind.name]
        rows.append((kind.name, f"{bar} {needs}; checkpoint {byte_size(kind.checkpoint_bytes)}; {here}"))
    return rows


def _bar(need: int, device: int, scale: int) -> str:
    """Draw what is needed against the device's memory; what is beyond the device has another sign."""
    filled = max(1, round(min(need, device) / scale * _BAR_WIDTH))
    beyond = max(1, round((need - device) / scale * _BAR_WIDTH)) if need > device else 0
    device_width = max(filled + beyond, round(device / scale * _BAR_WIDTH))
    return _FILLED * filled + _BEYOND * beyond + _FREE * (device_width - filled - beyond) + " " * (_BAR_WIDTH - device_width)


def smaller_kind(plan: RunPlan) -> str | None:
    """Return the name of the first kind of training that fits where the plan does not, in the order of `FLAGS`; else None."""
    estimates = plan.estimates
    if estimates.memory.total <= estimates.device_memory:
        return None
    fitting = (kind.name for kind in estimates.alternatives if kind.memory <= estimates.device_memory)
    return next((name for name in fitting if name != FULL), None)


def adapter_label(plan: RunPlan) -> str:
    """Return `LoRA of rank 16, 3.62 % trained` for a narrow place; nothing where all weights are trained."""
    if plan.adapter is None:
        return ""
    share = plan.adapter.trained(plan.base.model) / plan.base.model.num_parameters()
    kind = kind_of(plan.config.adapter, plan.config.base_precision, plan.config.optimizer)
    return f"{kind} of rank {plan.adapter.lora.rank}, {share:.2%} trained"


def formats_text(plan: RunPlan) -> str:
    """Return in which formats the weights that are trained, their gradients and moments are kept."""
    if plan.config.optimizer != ADAMW8BIT:
        return "master weights and optimizer in fp32"
    if has_fp32_masters(ADAMW8BIT, bf16=plan.precision == "bf16", adapter=plan.adapter is not None):
        return "master weights and gradients in fp32, moments in 8 bits"
    return "no fp32 master weights, stochastic rounding; gradients added up in fp32, moments in 8 bits"
