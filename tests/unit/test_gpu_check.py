"""How the check of a machine with a GPU runs its parts and tells what they found; tests/e2e/test_gpu_check.py runs them."""

from __future__ import annotations

import json
import re
import time
import tomllib
from pathlib import Path

import pytest

from bench.gpu import check, report, wheels
from bench.gpu.check import NO_TIME, TIMED_OUT, Part
from bench.gpu.part import DONE, FAILED, Findings
from bench.gpu.part import main as run_part

_SPEED = {"precision": "bf16", "ms": 350.0, "tokens_per_s": 46811.4, "mfu": 0.46, "peak_gb": 40.1, "of_plan": 0.95}


def part(module: str, *, right: bool = True) -> Part:
    return Part(name=module.rpartition(".")[2], module=module, seconds=60, right=right)


def found(**changes: object) -> dict[str, object]:
    return {"status": DONE, "checks": [], "figures": {}, "notes": [], "seconds": 1.0, "log": "part.log", **changes}


def test_what_is_wrong_makes_the_check_fail_and_what_is_slow_does_not() -> None:
    wrong = {"what": "losses", "passed": False, "found": "0.1", "limit": "at most 0"}
    right = {**wrong, "passed": True}
    assert check.faults(part("runs"), found(checks=[right])) == []
    assert check.faults(part("runs"), found(checks=[right, wrong])) == ["  runs: losses: 0.1"]
    assert check.faults(part("perf", right=False), found(status=FAILED)) == []
    assert check.faults(part("runs"), found(status=TIMED_OUT)) == [f"  runs: {TIMED_OUT}; see part.log"]
    assert check.faults(part("runs"), found(status=NO_TIME)) == []


def test_a_number_that_is_none_is_wrong(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "part.json")
    findings.at_most("error", float("nan"), 1e-2)
    findings.at_most("error", 1e-2, 1e-2)
    findings.figure("series", {"losses": [1.0, float("inf")]})
    with findings.attempt("loading", right=True):
        raise RuntimeError("no kernel\nat line 3")
    with findings.attempt("peer", right=False):
        raise ModuleNotFoundError("No module named 'peer'")
    kept = json.loads((tmp_path / "part.json").read_text())
    assert [(one["what"], one["passed"]) for one in kept["checks"]] == [("error", False), ("error", True), ("loading", False)]
    assert kept["checks"][2]["found"] == "RuntimeError: no kernel"
    assert kept["figures"] == {"series": {"losses": [1.0, "inf"]}}
    assert kept["notes"] == ["peer: ModuleNotFoundError: No module named 'peer'"]


def test_a_part_that_raises_has_failed_and_keeps_what_it_found(tmp_path: Path) -> None:
    setup = {"output": str(tmp_path), "work": str(tmp_path / "work"), "tiny": True, "ends": time.time() + 60}
    assert run_part("table_that_is_not_there", json.dumps(setup), str(tmp_path / "part.json")) == 1
    kept = json.loads((tmp_path / "part.json").read_text())
    assert kept["status"] == FAILED
    assert "table_that_is_not_there" in kept["notes"][0]


def test_parts_do_not_stop_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that cannot be imported, one for which no time is left."""
    monkeypatch.setattr(check, "PARTS", (part("no_such_part"), part("nor_this", right=False)))
    assert check.main(["--tiny", "--output", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [result["status"] for result in results["parts"].values()] == [FAILED, FAILED]
    assert "WRONG:\n  no_such_part: failed; see" in capsys.readouterr().out
    assert check.main(["--budget", "0", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [result["status"] for result in results["parts"].values()] == [NO_TIME, NO_TIME]


def test_the_tables() -> None:
    facts = {"device": "NVIDIA H100", "kind": "cuda", "devices": 1, "memory_gb": 85.0, "date": "2026-11-29 10:00"}
    facts |= {"python": "3.12", "tiny": False, "versions": {"torch": "2.11.0"}}
    model = "SmolLM2-135M, 8 x 2,048"
    program = "transformers + Liger + compiled layers"
    peer = {"model": model, "program": program, "tokens_per_s": 20000.0, "mfu": 0.2, "peak_gb": 50.0}
    parts = {
        "machine": found(figures={"doctor": {"torch_tflops_bf16": 790.1, "torch_tflops_fp32": 51.2}, "copy_tb_s": 3.05}),
        "attention": found(
            checks=[{"what": "bits", "passed": False, "found": "3 of 4", "limit": ""}],
            figures={"ms": {"medsft": 2.1, "torch": 2.0, "torch, deterministic": 2.3}},
        ),
        "perf": found(
            figures={
                "cases": {model: _SPEED, "8 layers of 8B, 4 x 2,048": {**_SPEED, "ms": 400.0}},
                "whole_8b": {"layer_ms": 20.0, "ms": 800.0, "tokens_per_s": 10240.0},
            }
        ),
        "peers": found(figures={"cases": [peer]}, notes=["8B: OutOfMemoryError: CUDA out of memory."]),
    }
    text = report.markdown({"facts": facts, "parts": parts})
    assert text.startswith("1 x NVIDIA H100, 85.0 GB; 2026-11-29 10:00; Python 3.12, torch 2.11.0.\n")
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert (
        "What the device can do: products in bf16 790 TFLOP/s, products in fp32 51.2 TFLOP/s, copies on the device 3.05 TB/s."
        in text
    )
    assert rows["attention"] == ["done", "0 of 1", "1", "bits: 3 of 4"]
    assert rows["8B in fp32 masters, by the slices"][3:5] == ["800", "10,240"]
    assert rows[f"{model}, beside transformers + Liger + compiled layers"] == ["2.34", "at least 2.0", "yes"]
    assert rows[f"{model}: peak of the plan's"] == ["0.95", "0.9 to 1.1", "yes"]
    assert rows["8 layers of 8B, 4 x 2,048: share of a deterministic attention's cost"] == ["0.006", "at most 0.05", "yes"]
    assert "- peers: 8B: OutOfMemoryError: CUDA out of memory." in text


def test_each_dependency_is_in_the_image_or_among_the_wheels() -> None:
    project = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in project["dependencies"]}
    assert names == {*wheels.IMAGE, *wheels.LACKING, *wheels.NOT_USED}
    asked = wheels.requirements()
    assert [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in asked] == [*wheels.LACKING, *wheels.BESIDE]
    assert "tomlkit>=0.13" in asked
