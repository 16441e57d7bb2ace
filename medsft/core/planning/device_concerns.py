"""What the devices of a plan have to do with its number format and its memory: what is decided, refused and said."""

from __future__ import annotations

from medsft.core.config.lora import FLAGS
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices
from medsft.core.planning.plan import RunPlan
from medsft.errors import ConfigError, Problem


def precision_on(config: RunConfig, devices: Devices) -> str:
    """Return the number format of the computation. Raises `ConfigError` for bf16 on a GPU that has no kernels for it."""
    if config.precision == "auto":
        return "bf16" if devices.bf16 else "fp32"
    if config.precision == "bf16" and devices.kind == "cuda" and not devices.bf16:
        capability = "" if devices.capability is None else f" (compute capability {devices.capability:g})"
        message = f"{devices.name}{capability} cannot compute in bf16, which takes 8.0 (Ampere) or newer"
        raise ConfigError([Problem("--precision", message, "Use --precision fp32, which auto takes here.")])
    return config.precision


def device_concerns(plan: RunPlan, devices: Devices) -> list[str]:
    """Return what a person should know of a plan on these devices before the run starts, though it can."""
    lines = []
    if plan.config.precision == "bf16" and not devices.bf16:
        lines.append(f"{devices.name} multiplies in fp32: --precision bf16 is no faster here, it only takes less memory.")
    if plan.estimates.memory.total > plan.estimates.device_memory:
        lines.append(_too_large(plan))
    return lines


def _too_large(plan: RunPlan) -> str:
    """Return that a rank has not the memory that it needs, and what needs less."""
    estimates = plan.estimates
    smaller = [kind for kind in estimates.alternatives if kind.memory < estimates.memory.total and not kind.chosen]
    needs = [
        f"with {FLAGS[kind.name]} {'it needs ' if not number else ''}{kind.memory / 1e9:.1f} GB"
        for number, kind in enumerate(smaller)
    ]
    remedy = f"W{', '.join(needs)[1:]}. Or use" if smaller else "Use"
    return (
        f"A rank needs about {estimates.memory.total / 1e9:.1f} GB and has {estimates.device_memory / 1e9:.1f} GB: it will "
        f"run out of memory. {remedy} {less_memory(plan)}."
    )


def less_memory(plan: RunPlan | None) -> str:
    """Return which flags ask for less memory than a plan, as the end of a sentence; all of them where there is no plan."""
    ways = ["a smaller --micro_batch"] if plan is None or plan.micro_batch > 1 else []
    ways += ["--recompute full"] if plan is None or plan.recompute != "full" else []
    return ", ".join([*ways, f"{'or ' if ways else ''}more --tp or --pp"])
