"""Plans of small projects: what is chosen, what is refused, what stays the same run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from medsft.core.config.lora import TARGETS
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices
from medsft.core.models.config import from_hf_config
from medsft.core.planning import planner
from medsft.core.planning.auto_layout import LayoutInputs, choose, sample_batches
from medsft.core.planning.layout import Layout
from medsft.core.planning.order import SampleOrder
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import make_plan, preview, replan
from medsft.core.settings import Settings, load_settings
from medsft.core.workflow import tokenize_sets
from medsft.errors import ConfigError, DataError, MismatchError

LLAMA_2_70B = {
    **tiny.LLAMA,
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture(autouse=True)
def _laptop(monkeypatch):
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)


@pytest.fixture
def project(tmp_path) -> tuple[RunConfig, Settings]:
    """A base model whose weights are not looked into, and JSONL."""
    return tiny.plannable(tmp_path, global_batch=8)


@pytest.fixture
def tokenized(project) -> tuple[RunConfig, Settings]:
    tokenize_sets(*project)
    return project


def test_a_plan(tokenized):
    plan = make_plan(*tokenized)
    assert (plan.train.documents, plan.num_iterations, plan.epochs) == (40, 15, 3.0)
    assert (plan.global_batch, plan.eval_interval) == (8, 3)
    assert plan.val is not None
    assert plan.val.documents == 11
    assert (str(plan.layout), plan.nproc_per_node, plan.precision) == ("pp 1 x dp 1 x tp 1", 1, "fp32")
    assert plan.micro_batch * plan.num_micro_batches == 8
    assert Path(plan.run_dir).name == "llama-0.001b-tp1-pp1-tiny-words"
    assert plan.warnings == ()


def test_written_and_read_it_is_the_same(tokenized):
    config, settings = tokenized
    for changed in (config, replace(config, tp=2, pp=2, id="x", system_key="s", loss_mask=0.5)):
        plan = make_plan(changed, settings)
        again = RunPlan.from_json(json.loads(plan.to_json()))
        assert again == plan
        assert again.identity == plan.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=0), "another version"),
        (lambda raw: raw.pop("layout"), "damaged or incomplete"),
        (lambda raw: raw["train"].update(more=1), "damaged or incomplete"),
    ],
)
def test_a_damaged_plan(tokenized, change, message):
    raw = json.loads(make_plan(*tokenized).to_json())
    change(raw)
    with pytest.raises(MismatchError, match=message):
        RunPlan.from_json(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"tp": 2},
        {"pp": 2},
        {"nproc_per_node": 2},
        {"micro_batch": 1},
        {"recompute": "full"},
        {"save_interval": 3},
        {"keep_last": 0},
        {"nodes": 2, "addr": "a"},
    ],
    ids=str,
)
def test_what_does_not_make_it_another_run(tokenized, changes):
    config, settings = tokenized
    old, new = make_plan(config, settings), make_plan(replace(config, **changes), settings)
    assert difference(old, new) == []
    assert old.identity == new.identity


def test_folders_do_not_make_it_another_run(tokenized, tmp_path):
    config, settings = tokenized
    old = make_plan(config, settings)
    (tmp_path / "tokenized").rename(tmp_path / "moved")
    new = make_plan(replace(config, tokenized_data_dir=tmp_path / "moved", save_checkpoint_dir=tmp_path / "b"), settings)
    assert difference(old, new) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 1e-4}, "--lr: was 2e-05, now 0.0001"),
        ({"seed": 1}, "--seed: was 1234, now 1"),
        ({"loss_mask": 0.5}, "--loss_mask"),
        ({"turns": "last"}, "--turns: was all, now last"),
        ({"global_batch": 4}, "--global_batch"),
        ({"weight_decay": 0.0}, "--weight_decay"),
        ({"iters": 7}, "iterations: was 15, now 7"),
        ({"eval_interval": 9}, "--eval_interval: was 3, now 9"),
        ({"epochs": 9.0}, "iterations"),
        ({"precision": "bf16"}, "precision: was fp32, now bf16"),
        ({"optimizer": "adamw8bit"}, "--optimizer: was adamw, now adamw8bit"),
    ],
    ids=str,
)
def test_what_makes_it_another_run_is_named(tokenized, changes, named):
    config, settings = tokenized
    old, new = make_plan(config, settings), make_plan(replace(config, **changes), settings)
    assert old.identity != new.identity
    assert any(named in line for line in difference(old, new))


def test_adapters_are_in_the_identity_and_nothing_of_them_without_one(tokenized):
    config, settings = tokenized
    full = make_plan(config, settings)
    assert not {name for name in full.identity_fields() if "lora" in name or "adapter" in name or "base_precision" in name}
    lora = make_plan(replace(config, adapter="lora"), settings)
    assert (lora.config.lr, lora.config.min_lr, lora.config.weight_decay) == (2e-4, 2e-5, 0.0)
    assert json.loads(lora.to_json())["config"]["lr"] == 2e-4
    assert RunPlan.from_json(json.loads(lora.to_json())) == lora
    rates = [f"--{name}: was" for name in ("lr", "min_lr", "weight_decay")]
    lines = difference(full, lora)
    assert [line for line in lines if not line.startswith(tuple(rates))] == ["--adapter: was none, now lora"]
    assert Path(lora.run_dir).name.endswith("-lora")
    for changes, named in (
        ({"lora_rank": 8}, "--lora_rank: was 16, now 8"),
        ({"lora_alpha": 16}, "--lora_alpha: was 32.0, now 16.0"),
        ({"lora_targets": "attention"}, "now q_proj,k_proj,v_proj,o_proj"),
        ({"rslora": True}, "--rslora: was False, now True"),
        ({"base_precision": "nf4"}, "--base_precision: was fp32, now nf4"),
    ):
        other = make_plan(replace(lora.config, **changes), settings)
        assert named in "".join(difference(lora, other))
        assert other.identity != lora.identity
    by_name: dict[str, Any] = {"lora_targets": ",".join(TARGETS)}
    others: tuple[dict[str, Any], ...] = ({"export": "merged"}, {"base_precision": "fp32"}, {"lora_targets": "all"}, by_name)
    for same in others:
        assert make_plan(replace(lora.config, **same), settings).identity == lora.identity


def test_other_data_and_another_base_are_named(tokenized, tmp_path):
    config, settings = tokenized
    old = make_plan(config, settings)
    tiny.write_rows(tmp_path / "train.jsonl", 41)
    tiny.write_weights(tmp_path / "base", "F32")
    config = replace(config, retokenize=True)
    tokenize_sets(config, settings)
    lines = "\n".join(difference(old, make_plan(config, settings)))
    assert "training set" in lines
    assert "training documents: was 40, now 41" in lines
    assert "base model" in lines


def test_replanning_keeps_the_folder_and_the_iterations(tokenized):
    config, settings = tokenized
    plan = make_plan(config, settings)
    changed = replan(plan, run_dir=Path(plan.run_dir), changes={"tp": 2, "nproc_per_node": 4})
    assert str(changed.layout) == "pp 1 x dp 2 x tp 2"
    assert (changed.run_dir, changed.export_dir, changed.identity) == (plan.run_dir, plan.export_dir, plan.identity)
    assert changed.config.iters is None
    with pytest.raises(ConfigError, match="--tp"):
        replan(plan, run_dir=Path(plan.run_dir), changes={"tp": 3, "nproc_per_node": 3})


def test_a_plan_needs_tokenized_sets(project):
    with pytest.raises(DataError, match="no tokenized set"):
        make_plan(*project)


def test_ahead_documents_are_estimated(project):
    plan = make_plan(*project, ahead=True)
    assert plan.train.documents == 40
    assert "estimated" in "\n".join(plan.warnings)


def test_a_differing_number_of_documents_is_a_warning(tokenized):
    config, settings = tokenized
    plan = make_plan(config, replace(settings, datasets={"words": 39}))
    assert "39 documents" in "\n".join(plan.warnings)


def test_memory_that_does_not_suffice_is_a_warning(tokenized, monkeypatch):
    monkeypatch.setattr(planner, "find_devices", lambda: replace(tiny.LAPTOP, memory_bytes=10**8))
    plan = make_plan(*tokenized)
    assert plan.micro_batch == 1
    assert "out of memory" in "\n".join(plan.warnings)


def test_llama_2_70b_is_planned_from_its_config_alone(tmp_path, project):
    config, _ = project
    tiny.write_base(tmp_path / "llama", weights=False, **LLAMA_2_70B)
    (tmp_path / "medsft.toml").write_text('[checkpoints.llama]\n70 = "llama"\n')
    settings = load_settings(tmp_path / "medsft.toml")
    large = replace(config, checkpoint="llama", size=70, tp=8, pp=8, nodes=8, nproc_per_node=8, global_batch=64)
    plan = make_plan(large, settings, ahead=True)
    assert plan.layout == Layout(pp=8, dp=1, tp=8)
    warnings = "\n".join(plan.warnings)
    assert "no weights" in warnings
    assert plan.estimates.device_name in warnings
    assert plan.estimates.device_kind == "cuda"
    parameters = 68.98e9
    assert plan.estimates.checkpoint_bytes == pytest.approx(12 * parameters, rel=0.01)
    memory = plan.estimates.memory
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(18 * parameters / 64, rel=0.1)


def test_a_run_needs_weights(tmp_path, tokenized):
    config, settings = tokenized
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(MismatchError, match="no weights"):
        make_plan(config, settings)
    (tmp_path / "base" / "tokenizer.json").unlink()
    plan = make_plan(config, settings, ahead=True)
    assert "No tokenizer" in "\n".join(plan.warnings)


def test_a_preview_collects_all_problems(project):
    config, settings = project
    found = preview(replace(config, checkpoint="tinny", data=(), min_lr=1.0, loss_mask=3.0), settings)
    assert found.plan is None
    assert {"--min_lr", "--loss_mask", "--data", "--checkpoint"} <= {problem.where for problem in found.problems}


def test_a_preview_is_exact_once_tokenized(project):
    config, settings = project
    first = preview(config, settings)
    assert (first.problems, first.exact) == ((), False)
    tokenize_sets(config, settings)
    second = preview(config, settings)
    assert (second.problems, second.exact) == ((), True)
    assert second.plan is not None
    assert second.plan.identity == make_plan(config, settings).identity


def test_a_preview_names_levels_that_cannot_work(project):
    config, settings = project
    found = preview(replace(config, tp=3), settings)
    assert found.plan is None
    assert [problem.where for problem in found.problems] == ["--tp"]
    assert "2" in found.problems[0].hint


def layout_inputs(documents: int, **changes: Any) -> LayoutInputs:
    config = RunConfig(run_name="x", size=7)
    lengths = np.random.default_rng(0).integers(20, 2048, documents)
    values = {
        "config": config,
        "model": from_hf_config({**LLAMA_2_70B, "num_hidden_layers": 8}, where="config.json"),
        "tp": None,
        "pp": None,
        "devices": Devices("cuda", 8, 80 * 10**9, "GPU", bf16=True),
        "precision": "bf16",
        "global_batch": config.global_batch,
        "batches": sample_batches(SampleOrder(documents, config.global_batch, 1), lengths),
        "longest": int(lengths.max()),
    }
    return LayoutInputs(**{**values, **changes})


def test_the_least_splitting_that_fits_is_chosen():
    large = choose(layout_inputs(1000))
    small = choose(layout_inputs(1000, devices=Devices("cuda", 8, 30 * 10**9, "GPU", bf16=True)))
    assert large.layout.world == small.layout.world == 8
    assert small.layout.tp * small.layout.pp > large.layout.tp * large.layout.pp
    assert small.memory.total < 30 * 10**9


def test_a_pipeline_gets_micro_batches_to_fill_it():
    choice = choose(layout_inputs(1000, tp=2, pp=4))
    assert choice.num_micro_batches >= 16


def test_a_plan_of_a_million_documents(tokenized, capsys):
    """Prints how long it takes; a plan reads lengths, never tokens."""
    started = time.process_time()
    choice = choose(layout_inputs(1_000_000))
    with capsys.disabled():
        print(f"\n1,000,000 documents: layout and micro-batch in {time.process_time() - started:.2f} s")
    assert choice.layout.world == 8
