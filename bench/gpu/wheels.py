"""`make gpu-wheels`: the wheels that an image with PyTorch lacks, for a machine that can fetch none, and what to run there."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from bench.table import say
from medsft.core.units import byte_size

ROOT = Path(__file__).parents[2]
IMAGE = (
    *("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "numpy", "scipy", "jinja2", "typer", "rich"),
    *("filelock", "psutil"),
)
"""Dependencies that such an image has; triton, peft and accelerate are there for the peers."""
LACKING = ("fastokens", "gguf", "gigatoken", "orjson", "tomlkit")
"""Dependencies that it lacks, and without which no run starts, or tokenizing is slow."""
NOT_USED = ("textual",)
"""Dependencies that the check does without: the screens."""
BESIDE = ("liger-kernel",)
"""What makes a step on a GPU faster, and what the peers use."""
_LIMIT = 64 << 20
"""Of all wheels together, to be carried."""
_SYSTEMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
"""Oldest systems that a wheel is for; pip takes no other than those that are named."""


def main(arguments: Sequence[str]) -> int:
    """Collect the wheels. Return 1 where they are larger than what can be carried."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.wheels", description="Collect wheels for a machine with a GPU.")
    parser.add_argument("--to", type=Path, default=Path("build/gpu-wheels"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of that machine (default %(default)s)")
    parser.add_argument("--machine", default="x86_64", help="its processor (default %(default)s)")
    options = parser.parse_args(arguments)
    folder: Path = options.to
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    where = ["--only-binary=:all:", "--implementation", "cp", "--python-version", options.python]
    for system in _SYSTEMS:
        where += ["--platform", f"{system}_{options.machine}"]
    subprocess.run([*pip, "download", "--no-deps", *where, "--dest", str(folder), *requirements()], check=True)
    wheels = sorted(folder.glob("*.whl"))
    total = sum(wheel.stat().st_size for wheel in wheels)
    for wheel in wheels:
        say(f"{byte_size(wheel.stat().st_size):>10}  {wheel.name}")
    say(f"{byte_size(total):>10}  in {folder}")
    say(f"\nOn the machine with the GPU, in a copy of this folder with {folder} in it:\n\n{command(folder)}\n")
    if total > _LIMIT:
        say(f"These are more than {byte_size(_LIMIT)}.")
    return int(total > _LIMIT)


def requirements() -> list[str]:
    """Return what is fetched, with the versions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    by_name = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower(): line for line in reversed(asked)}
    return [by_name.get(name, name) for name in (*LACKING, *BESIDE)]


def command(folder: Path) -> str:
    """Return the one command that installs the wheels beside the image's own packages and runs the check."""
    site = "/tmp/medsft-site"
    return (
        f"python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target {site} {folder}/*.whl && "
        f"PYTHONPATH={site} python3 -m bench gpu --output OUTPUT"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
