"""What the check found, as Markdown for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.table import Row, table_lines

_FIGURES = {
    "training": "name",
    "precision": "precision",
    "recompute": "recompute",
    "micro-batch": "micro_batch",
    "ms": "ms",
    "tokens/s": "tokens_per_s",
    "MFU": "mfu",
    "peak GB": "peak_gb",
    "of plan": "of_plan",
    "kernels": "kernels",
    "kernel ms": "kernel_ms",
    "host ms": "host_ms",
}
"""Columns of the table of speed, and where their figures are."""
_GOALS = (
    ("Llama 3.2 1B, 8 x 2,048", "mfu", 0.45),
    ("Llama 3 8B LoRA, 8 x 2,048", "tokens_per_s", 12_500),
    ("Llama 3 8B adamw8bit, 8 x 2,048", "mfu", 0.50),
)
"""On an H100: (training, figure, at least)."""
_PEER_GOAL = "SmolLM2-135M, 8 x 2,048", "transformers + Liger + compiled layers", 2.0
_PLAN_GOAL = 0.9, 1.1
_COST_GOAL = 0.05
"""Of a step, at most, for a backward of attention that is deterministic."""
_COST_CASES = ("8 layers of 8B, 4 x 2,048", 8), ("Llama 3 8B LoRA, 8 x 2,048", 64)
"""Trainings whose step has so many layers of the attention that was timed: four documents of 2,048 tokens."""

Result = Mapping[str, Any]


def markdown(results: Result) -> str:
    """Return headings and tables for what has been found so far."""
    parts: Mapping[str, Result] = results["parts"]
    lines = [_heading(results["facts"]), "", *_summary(parts)]
    for title, rows in (
        ("Speed", list(_speed(parts))),
        ("Beside other programs", list(_peers(parts))),
        ("Goals", list(_goals(parts)) if results["facts"]["kind"] == "cuda" else []),
        ("Several GPUs", list(_layouts(parts))),
    ):
        if rows:
            lines += ["", f"### {title}", "", *table_lines(rows)]
    if notes := [f"- {name}: {note}" for name, part in parts.items() for note in part["notes"]]:
        lines += ["", "### Not run, or failed without being wrong", "", *notes]
    return "\n".join(lines) + "\n"


def _heading(facts: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    device = f"{facts['devices']} x {facts['device']}" if facts["kind"] == "cuda" else f"{facts['device']} (no GPU)"
    sizes = ", sizes of tests" if facts["tiny"] else ""
    return f"{device}, {facts['memory_gb']} GB; {facts['date']}; Python {facts['python']}, {versions}{sizes}."


def _summary(parts: Mapping[str, Result]) -> Iterator[str]:
    rows: list[Row] = []
    for name, part in parts.items():
        wrong = [f"{check['what']}: {check['found']}" for check in part["checks"] if not check["passed"]]
        right = len(part["checks"]) - len(wrong)
        rows.append(
            {
                "part": name,
                "how it ended": part["status"],
                "right": f"{right} of {len(part['checks'])}" if part["checks"] else "",
                "s": f"{part['seconds']:.0f}",
                "wrong": "; ".join(wrong).replace("|", "/"),
            }
        )
    yield from table_lines(rows)
    figures = parts.get("machine", {}).get("figures", {})
    machine = {**figures, **figures.get("doctor", {})}
    rates = {
        "products in bf16": ("torch_tflops_bf16", "TFLOP/s"),
        "products in fp32": ("torch_tflops_fp32", "TFLOP/s"),
        "attention of a layer of 8B, forward and backward": ("torch_attention_ms", "ms"),
        "copies on the device": ("copy_tb_s", "TB/s"),
    }
    if said := [f"{what} {_shown(machine[key])} {unit}" for what, (key, unit) in rates.items() if key in machine]:
        yield ""
        yield f"What the device can do: {', '.join(said)}."


def _cases(parts: Mapping[str, Result]) -> dict[str, Result]:
    """Return what was measured of medsft's steps, by the name of the training."""
    found: dict[str, Result] = dict(parts.get("perf", {}).get("figures", {}).get("cases", {}))
    figures = parts.get("adapters", {}).get("figures", {})
    return found | {name: figures[name] for name in ("LoRA, 1B", "QLoRA, 1B") if name in figures}


def _speed(parts: Mapping[str, Result]) -> Iterator[Row]:
    for name, case in _cases(parts).items():
        values = {**case, "name": name}
        yield {column: _shown(values.get(key)) for column, key in _FIGURES.items()}
    whole = parts.get("perf", {}).get("figures", {}).get("whole_8b")
    if whole:
        row = dict.fromkeys(_FIGURES, "")
        rate = _shown(whole["tokens_per_s"])
        yield row | {"training": "8B in fp32 masters, by the slices", "ms": _shown(whole["ms"]), "tokens/s": rate}


def _peers(parts: Mapping[str, Result]) -> Iterator[Row]:
    ours = _cases(parts)
    for peer in _peer_cases(parts):
        own = ours.get(peer["model"])
        yield {
            "training": peer["model"],
            "program": peer["program"],
            "tokens/s": _shown(peer["tokens_per_s"]),
            "MFU": _shown(peer["mfu"]),
            "peak GB": _shown(peer["peak_gb"]),
            "medsft, times as fast": f"{own['tokens_per_s'] / peer['tokens_per_s']:.2f}" if own else "",
        }


def _peer_cases(parts: Mapping[str, Result]) -> Sequence[Result]:
    cases: Sequence[Result] = parts.get("peers", {}).get("figures", {}).get("cases", [])
    return cases


def _goals(parts: Mapping[str, Result]) -> Iterator[Row]:
    cases = _cases(parts)
    for name, key, least in _GOALS:
        value = cases.get(name, {}).get(key)
        if value is not None:
            yield _goal(f"{name}: {key.replace('_per_', '/')}", value, f"at least {least:,}", met=value >= least)
    model, program, least = _PEER_GOAL
    for peer in _peer_cases(parts):
        if (peer["model"], peer["program"]) == (model, program) and model in cases:
            ratio = cases[model]["tokens_per_s"] / peer["tokens_per_s"]
            yield _goal(f"{model}, beside {program}", ratio, f"at least {least}", met=ratio >= least)
    for name, case in cases.items():
        low, high = _PLAN_GOAL
        share = case["of_plan"]
        yield _goal(f"{name}: peak of the plan's", share, f"{low} to {high}", met=low <= share <= high)
    times = parts.get("attention", {}).get("figures", {}).get("ms", {})
    if times:
        more = times["torch, deterministic"] - times["torch"]
        for name, layers in _COST_CASES:
            if name in cases:
                cost = layers * more / cases[name]["ms"]
                wanted = f"at most {_COST_GOAL}"
                yield _goal(f"{name}: share of a deterministic attention's cost", cost, wanted, met=cost <= _COST_GOAL)


def _goal(what: str, found: float, goal: str, *, met: bool) -> Row:
    return {"goal for an H100": what, "found": _shown(found), "wanted": goal, "met": "yes" if met else "no"}


def _layouts(parts: Mapping[str, Result]) -> Iterator[Row]:
    for layout, rates in parts.get("several_gpus", {}).get("figures", {}).get("rates of a 1B model", {}).items():
        yield {
            "layout": layout,
            "tokens/s": _shown(rates["tokens_per_s"]),
            "MFU": _shown(rates["mfu"]),
            "peak GB": _shown(rates["peak_gb"]),
            "of plan": _shown(rates["of_plan"]),
        }


def _shown(value: object) -> str:
    """Return a figure with three digits, or as many as a whole number has."""
    if value is None:
        return ""
    if isinstance(value, int) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
