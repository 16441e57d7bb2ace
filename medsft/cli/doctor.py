"""`medsft doctor`: what this machine has, and what that means for a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsft.cli import console
from medsft.cli.flags import DEFAULT_RUNS_FOLDER, Json, RunsFolder
from medsft.core.printable import printable

if TYPE_CHECKING:
    from medsft.core.devices import Devices

_PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "gguf", "textual", "typer", "numpy")
_BYTES_PER_PARAMETER = 16
"""Weights, gradients and both Adam moments in fp32; activations come on top."""
_ADAPTER_BYTES = 0.1
"""For each parameter of a model of 8e9: 16 bytes for each of an adapter of rank 16 on all linear layers."""
_IN_LAYERS = 0.87
"""Share of the parameters of such a model that lie in its linear layers; nf4 takes `_NF4_BYTES` for each of these."""
_NF4_BYTES = 0.516
_LITTLE_DISK = 20 << 30
_LITTLE_SHARED_MEMORY = 1 << 30


def doctor(save_checkpoint_dir: RunsFolder = DEFAULT_RUNS_FOLDER, json: Json = False) -> None:
    """Show what this machine has, and say what will be slow or impossible on it."""
    from medsft.core.devices import find_devices

    devices = find_devices()
    facts = {**_machine(devices), **_disk(save_checkpoint_dir), **_packages(), **_torch()}
    advice = list(_advice(devices, facts))
    if json:
        console.print_json({"facts": facts, "advice": advice})
        return
    from rich.text import Text

    from medsft.core.units import byte_size

    sizes = ("memory", "disk_free", "shared_memory_free")
    rows = [
        (name.replace("_", " "), byte_size(value) if name in sizes else _in_words(value))
        for name, value in facts.items()
        if value is not None
    ]
    console.print_table(("", ""), rows)
    out = console.result_console()
    out.print()
    for line in advice:
        out.print(Text(f"- {printable(line)}"))


def _in_words(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _machine(devices: Devices) -> dict[str, Any]:
    import platform

    return {
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "device": devices.name,
        "devices": f"{devices.count} {'GPU' if devices.kind == 'cuda' else 'core'}{'s' if devices.count != 1 else ''}",
        "memory": devices.memory_bytes,
        "bf16_in_hardware": devices.bf16,
    }


def _disk(folder: Path) -> dict[str, Any]:
    import shutil

    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    shared = Path("/dev/shm")
    return {
        "disk_free": shutil.disk_usage(existing).free,
        "shared_memory_free": shutil.disk_usage(shared).free if shared.exists() else None,
    }


def _packages() -> dict[str, str]:
    from importlib import metadata

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _torch() -> dict[str, Any]:
    """Ask torch itself what it can do, in a process of its own."""
    import json

    from medsft.core.run.launch import run_engine
    from medsft.errors import MedsftError

    try:
        return {f"torch_{name}": value for name, value in json.loads(run_engine("doctor", [])).items()}
    except (MedsftError, ValueError) as error:
        return {"torch_failed": str(error)}


def _advice(devices: Devices, facts: dict[str, Any]) -> Iterator[str]:
    """Yield what a person should know before a run."""
    from medsft.core.units import byte_size

    missing = [name for name in _PACKAGES if facts[name] == "not installed"]
    if missing:
        yield f"Not installed: {', '.join(missing)}. Install medsft again: pip install medsft"
    if "torch_failed" in facts:
        yield "torch does not start, so nothing can be trained. `python -c 'import torch'` shows why."
    if "torch_attention_failed" in facts:
        yield f"Attention does not run on this GPU, so nothing can be trained on it: {facts['torch_attention_failed']}."
    if "torch_gpus" in facts and bool(facts["torch_gpus"]) != (devices.kind == "cuda"):
        shown = devices.count if devices.kind == "cuda" else "no"
        yield (
            f"The driver shows {shown} GPUs, torch {facts['torch_gpus'] or 'none'}: the build of torch, the driver and "
            "CUDA_VISIBLE_DEVICES must fit together."
        )
    billions = devices.memory_bytes * (devices.count if devices.kind == "cuda" else 1) / _BYTES_PER_PARAMETER / 1e9
    place = f"the {devices.count} GPUs" if devices.kind == "cuda" else "memory"
    yield f"Full fine-tuning fits {place} up to about {billions:.1f}e9 parameters; `medsft plan` gives the exact amount."
    unit = 2 if devices.bf16 else 4
    quantized = _IN_LAYERS * _NF4_BYTES + (1 - _IN_LAYERS) * unit
    lora, qlora = (billions * _BYTES_PER_PARAMETER / (size + _ADAPTER_BYTES) for size in (unit, quantized))
    yield f"--adapter lora goes up to about {_two_digits(lora)}e9, with --base_precision nf4 (QLoRA) {_two_digits(qlora)}e9."
    if devices.kind == "cpu":
        yield "No GPU was found: models above about 0.5e9 parameters will take days."
    if not devices.bf16:
        yield "This hardware has no bf16: --precision auto trains in fp32, which is slower on large models."
    if facts["disk_free"] < _LITTLE_DISK:
        free = byte_size(facts["disk_free"])
        yield f"Only {free} of disk space is free. A checkpoint takes 12 bytes for each parameter that is trained."
    shared = facts["shared_memory_free"]
    if devices.kind == "cuda" and devices.count > 1 and shared is not None and shared < _LITTLE_SHARED_MEMORY:
        yield f"/dev/shm has only {byte_size(shared)} free: NCCL between GPUs may fail. In Docker, use --shm-size 8g."


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):g}"
