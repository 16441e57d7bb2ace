"""What a plan chooses on GPUs beside the layout: what is recomputed, whether weights are gathered anew, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters_table
import numpy as np
import pytest
import tiny

from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices
from medsft.core.models.config import from_hf_config
from medsft.core.planning import planner
from medsft.core.planning.alternatives import adapter_of
from medsft.core.planning.auto_layout import LayoutChoice, LayoutInputs, choose
from medsft.core.planning.gpu_memory import communicator_bytes
from medsft.core.planning.layout import Layout
from medsft.core.planning.memory import Workload, estimate_memory
from medsft.core.planning.planner import make_plan, preview
from medsft.core.planning.recompute import KINDS, recompute_cost, relative_speed
from medsft.core.run.launch import Launch
from medsft.core.workflow import tokenize_sets
from medsft.errors import ConfigError

LLAMA_8B = from_hf_config(adapters_table.LLAMA_3_1_8B, where="config.json")
LENGTH = 2048


def gpus(count: int, gigabytes: float) -> Devices:
    return Devices("cuda", count, int(gigabytes * 1e9), "a GPU", bf16=True, capability=9.0)


def choice(devices: Devices, layers: int = 32, **changes: Any) -> LayoutChoice:
    """What is chosen for documents of one length with 8B's shapes in so many layers."""
    config = RunConfig(run_name="x", size=8, **{"tp": 1, "pp": 1, "global_batch": 64 * devices.count, **changes})
    return choose(
        LayoutInputs(
            config=config,
            global_batch=config.global_batch,
            model=replace(LLAMA_8B, num_layers=layers),
            tp=config.tp,
            pp=config.pp,
            devices=devices,
            precision="bf16",
            batches=(np.full(config.global_batch, LENGTH),),
            longest=LENGTH,
            adapter=adapter_of(config, precision="bf16", rows=0),
        )
    )


def need(found: LayoutChoice) -> float:
    return found.memory.total / 1e9


def test_what_fits_is_not_recomputed() -> None:
    found = choice(gpus(1, 141), layers=8)
    assert found.work.recompute == "none"
    assert found.micro_batch > 1


def test_recomputing_is_chosen_where_nothing_else_fits() -> None:
    needs = {kind: need(choice(gpus(1, 1000), micro_batch=4, recompute=kind)) for kind in KINDS}
    assert needs["none"] > needs["selective"] > needs["full"]
    for kind, less in (("none", "selective"), ("selective", "full")):
        middle = (needs[kind] + needs[less]) / 2 / 0.9
        assert choice(gpus(1, middle), micro_batch=4).work.recompute == less
    assert choice(gpus(1, needs["full"] / 2), micro_batch=4).work.recompute == "full"


def test_what_is_asked_for_is_kept() -> None:
    for kind in KINDS:
        assert choice(gpus(1, 1000), recompute=kind).work.recompute == kind
        assert choice(gpus(1, 20), recompute=kind).work.recompute == kind


def test_recomputing_pays_where_micro_batches_would_be_small() -> None:
    """By the rule: 2,048 tokens in place of 256 are worth more than a third of the products, and 16,384 for 4,096 are not."""
    cost = recompute_cost(LLAMA_8B, "full", frozen=False)
    assert 0.2 < cost < 1 / 3
    assert relative_speed(2048, cost) > relative_speed(256, 0)
    assert relative_speed(16_384, cost) < relative_speed(4096, 0)
    assert recompute_cost(LLAMA_8B, "none", frozen=False) == 0
    assert 0 < recompute_cost(LLAMA_8B, "selective", frozen=False) < cost < recompute_cost(LLAMA_8B, "full", frozen=True)


def test_weights_are_gathered_anew_where_nothing_else_fits() -> None:
    kept = choice(gpus(8, 1000), micro_batch=1, recompute="full")
    assert not kept.work.reshard
    less = choice(gpus(8, need(kept) / 0.9 - 1), micro_batch=1, recompute="full")
    assert less.work.reshard
    layers = LLAMA_8B.num_layers - 1
    assert kept.memory.weights - less.memory.weights == pytest.approx(2 * layers * LLAMA_8B.layer_parameters(), rel=0.01)
    assert less.memory.gradients == kept.memory.gradients


@pytest.mark.parametrize("changes", [{"pp": 2}, {"tp": 8}, {"adapter": "lora"}], ids=str)
def test_where_weights_are_never_gathered_anew(changes: dict[str, Any]) -> None:
    """In a pipeline they stay over its micro-batches; one rank has nothing to gather; an adapter's base is gathered anyway."""
    assert not choice(gpus(8, 10), **changes).work.reshard


def test_a_cpu_recomputes_what_is_asked_for() -> None:
    laptop = Devices("cpu", 8, 10 * 10**9, "a laptop", bf16=False)
    assert choice(laptop, layers=1).work.recompute == "none"
    assert choice(laptop, layers=1, recompute="full").work.recompute == "full"


def test_communicators() -> None:
    sizes = [communicator_bytes(layout) for layout in (Layout(), Layout(dp=2), Layout(dp=8), Layout(pp=2, dp=2, tp=2))]
    assert sizes[0] == 0
    assert sizes[1] == sizes[2] == sizes[3] / 2 > 0


def test_one_micro_batch_never_has_all_gradients_beside_all_activations() -> None:
    work = Workload(stream_tokens=8192, num_micro_batches=1, bf16=True, recompute="none", device_kind="cuda")
    once, often = (estimate_memory(LLAMA_8B, Layout(), replace(work, num_micro_batches=count)).total for count in (1, 2))
    assert once < often - 10e9


@pytest.fixture
def tokenized(tmp_path: Path) -> Any:
    config, settings = tiny.plannable(tmp_path)
    tokenize_sets(config, settings)
    return config, settings


def test_a_plan_says_what_is_recomputed(tokenized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, settings = tokenized
    monkeypatch.setattr(planner, "find_devices", lambda: gpus(1, 80))
    plan = make_plan(config, settings)
    assert (plan.recompute, plan.reshard) == ("none", False)
    assert make_plan(replace(config, recompute="full"), settings).recompute == "full"
    monkeypatch.setattr(planner, "find_devices", lambda: gpus(1, 1))
    small = make_plan(replace(config, micro_batch=8), settings)
    assert small.recompute == "full"
    assert small.identity == make_plan(replace(config, micro_batch=8, recompute="none"), settings).identity
    [told] = [warning for warning in small.warnings if "run out of memory" in warning]
    assert "--recompute" not in told


def test_more_processes_than_gpus_are_refused(tokenized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, settings = tokenized
    monkeypatch.setattr(planner, "find_devices", lambda: gpus(2, 80))
    with pytest.raises(ConfigError, match="--nproc_per_node: 3 processes on a node, and this one has 2 GPUs"):
        make_plan(replace(config, nproc_per_node=3), settings)
    with pytest.raises(ConfigError, match="--tp: tp 2 x pp 2 needs 4 processes"):
        make_plan(replace(config, tp=2, pp=2), settings)
    assert [problem.where for problem in preview(replace(config, nproc_per_node=3), settings).problems] == ["--nproc_per_node"]


def test_bf16_on_a_card_without_it_is_refused(tokenized: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, settings = tokenized
    card = replace(gpus(1, 16), name="Tesla T4", bf16=False, capability=7.5)
    monkeypatch.setattr(planner, "find_devices", lambda: card)
    assert make_plan(config, settings).precision == "fp32"
    with pytest.raises(
        ConfigError, match=r"--precision: Tesla T4 \(compute capability 7\.5\) cannot compute in bf16"
    ) as caught:
        make_plan(replace(config, precision="bf16"), settings)
    assert "--precision fp32" in caught.value.problems[0].hint


def test_a_start_has_what_was_decided_for_it(tokenized: Any) -> None:
    plan = make_plan(*tokenized)
    other = replace(plan, recompute="selective", reshard=True, estimates=replace(plan.estimates, device_kind="cuda"))
    assert Launch.of(other).apply(plan) == other
    earlier = replace(Launch.of(plan), recompute="", device_kind="", options={"recompute": "full"})
    applied = earlier.apply(plan)
    assert (applied.recompute, applied.reshard, applied.estimates) == ("full", False, plan.estimates)
