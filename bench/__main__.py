"""`python -m bench [PART]`: measure, print tables, and keep the figures in bench/results.

`python -m bench gpu` is the check of a machine with a GPU, with options of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.table import say

PARTS = ("train", "profile", "scaling", "end_to_end", "layouts", "crowded", "check", "answers", "adapters", "peft", "demo")


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:
        from bench.gpu.check import main as check

        sys.exit(check(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure medsft and the peers that are installed. For a machine with a GPU: python -m bench gpu --help",
    )
    parser.add_argument("part", nargs="?", choices=(*PARTS, "all"), default="all", help="default: all, one after the other")
    parser.add_argument(
        "--data", type=Path, metavar="FILE.jsonl", help="train on these rows (prompt, gold), not on generated ones"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of the training comparison (default 3)")
    parser.add_argument("--steps", type=int, default=6, help="steps of each training, the first not counted (default 6)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), action="append", help="default: both")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that `check` is timed with (default 1,000,000)")
    parser.add_argument("--work", type=Path, default=Path("bench/scratch"), help="folder for models and runs (3 GB)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "train": lambda: _train(options),
        "profile": lambda: _profile(options),
        "scaling": lambda: _scaling(options),
        "end_to_end": lambda: _end_to_end(options),
        "layouts": lambda: _layouts(options),
        "crowded": lambda: _crowded(options),
        "check": lambda: _checked(options),
        "answers": lambda: _answered(options),
        "adapters": lambda: _adapters(options),
        "peft": lambda: _peft(options),
        "demo": lambda: _demonstrated(options),
    }
    asked = PARTS if options.part == "all" else (options.part,)
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    results |= {part: parts[part]() for part in asked}
    path = Path("bench/results") / f"{time.strftime('%Y-%m-%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    say(f"All figures: {path}")
    if "train" in results:
        from bench import train

        train.plot(results["train"], path.with_suffix(".svg"))
        say(f"A picture: {path.with_suffix('.svg')}")


# Each part imports what it needs when it runs: `end_to_end` measures imports and starts, `train` needs torch.
def _train(options: argparse.Namespace) -> dict[str, Any]:
    from bench import train

    precisions = tuple(options.precision or ("bf16", "fp32"))
    return train.measure(options.work, rows=options.data, repeats=options.repeats, steps=options.steps, precisions=precisions)


def _profile(options: argparse.Namespace) -> dict[str, Any]:
    from bench import profiled

    return profiled.measure(options.work)


def _scaling(options: argparse.Namespace) -> dict[str, Any]:
    from bench import scaling

    return scaling.measure(options.work)


def _end_to_end(options: argparse.Namespace) -> dict[str, Any]:
    from bench import end_to_end

    return end_to_end.measure(options.work)


def _layouts(options: argparse.Namespace) -> dict[str, Any]:
    from bench import layouts

    return layouts.measure(options.work)


def _crowded(options: argparse.Namespace) -> dict[str, Any]:
    from bench import crowded

    precision = (options.precision or ["fp32"])[0]
    return crowded.measure(options.work, repeats=options.repeats, steps=options.steps, precision=precision)


def _checked(options: argparse.Namespace) -> dict[str, Any]:
    from bench import checked

    return checked.measure(options.work, data=options.data, rows=options.rows)


def _answered(options: argparse.Namespace) -> dict[str, Any]:
    from bench import answers

    precisions = tuple(options.precision or ("bf16", "fp32"))
    return answers.measure(options.work, data=options.data, repeats=options.repeats, precisions=precisions)


def _adapters(options: argparse.Namespace) -> dict[str, Any]:
    from bench import adapters

    precisions = tuple(options.precision or ("bf16", "fp32"))
    return adapters.measure(
        options.work, rows=options.data, repeats=options.repeats, steps=options.steps, precisions=precisions
    )


def _peft(options: argparse.Namespace) -> dict[str, Any]:
    from bench import peft_losses

    return peft_losses.measure(options.work, rows=options.data)


def _demonstrated(options: argparse.Namespace) -> dict[str, Any]:
    from bench import demonstrated

    return demonstrated.measure(options.work)


if __name__ == "__main__":
    main()
