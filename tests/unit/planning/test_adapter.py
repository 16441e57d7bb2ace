"""What an adapter costs: parameters, memory, disk, and what a plan says of the choice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters_table
import pytest
import tiny

from medsft.core.config.lora import FULL, FULL_8BIT, LORA, QLORA, TARGETS, LoraSpec
from medsft.core.config.run_config import RunConfig
from medsft.core.devices import Devices
from medsft.core.engine.commands.model_card import model_card
from medsft.core.forecast import forecast
from medsft.core.models.config import ModelConfig, from_hf_config
from medsft.core.planning import planner
from medsft.core.planning.adapter import AdapterPlan, adapter_concerns
from medsft.core.planning.layout import Layout
from medsft.core.planning.memory import Workload, estimate_memory
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.planner import make_plan
from medsft.core.run.events import EventWriter
from medsft.core.run.rundir import RunDir
from medsft.core.run.view import RunView
from medsft.core.settings import Settings, load_settings
from medsft.core.text.adapter import adapter_text, kind_bars, smaller_kind, trained_text
from medsft.core.text.plan import plan_rows
from medsft.core.workflow import tokenize_sets
from medsft.tui.screens.monitor_text import PlanFacts

MODEL = ModelConfig(
    family="llama",
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=128,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=512,
    tie_embeddings=False,
)
WORK = Workload(stream_tokens=100, num_micro_batches=8, bf16=True, recompute="none", device_kind="cuda")
MATRICES = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128
"""Of a layer: query, key, value and output; gate, up and down."""
REST = 6 * 2 * 64 + 64 + 2 * 1000 * 64
"""Norms and both tables."""
A_BY_COLUMN, B_BY_COLUMN = 8 * (3 * 64 + 2 * 64), 8 * (64 + 32 + 32 + 2 * 128)
"""Of the layers that are divided by rows: A is whole on each rank, B is divided."""
A_BY_ROW, B_BY_ROW = 8 * (64 + 128), 8 * (64 + 64)
PAIRS = A_BY_COLUMN + B_BY_COLUMN + A_BY_ROW + B_BY_ROW


def adapter(base_precision: str = "bf16", rows: int = 2) -> AdapterPlan:
    return AdapterPlan(lora=LoraSpec(rank=8, alpha=16, targets=TARGETS), base_precision=base_precision, rows=rows)


def test_what_is_trained_by_hand() -> None:
    assert adapter().trained(MODEL) == 6 * PAIRS + 2 * 2 * 64
    assert adapter(rows=0).trained(MODEL) == 6 * PAIRS
    tied = replace(MODEL, tie_embeddings=True)
    assert adapter().trained(tied) == 6 * PAIRS + 2 * 64
    assert adapter().file_bytes(MODEL) == 4 * (6 * PAIRS + 2 * 2 * 64)


@pytest.mark.parametrize(
    ("layout", "trained"),
    [
        (Layout(), 6 * PAIRS + 4 * 64),
        (Layout(dp=2), 6 * PAIRS + 4 * 64),
        (Layout(tp=2), 6 * (A_BY_COLUMN + B_BY_COLUMN // 2 + A_BY_ROW // 2 + B_BY_ROW) + 4 * 64),
        (Layout(pp=2), 3 * PAIRS + 2 * 64),
    ],
    ids=str,
)
def test_masters_moments_and_gradients_are_of_what_is_trained(layout: Layout, trained: int) -> None:
    found = estimate_memory(MODEL, layout, WORK, adapter=adapter())
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)


@pytest.mark.parametrize(("base_precision", "bits"), [("bf16", 16), ("fp32", 32), ("nf4", 4.129)])
def test_the_base_is_kept_once_in_its_format(base_precision: str, bits: float) -> None:
    found = estimate_memory(MODEL, Layout(), WORK, adapter=adapter(base_precision, rows=0))
    base = found.weights - 6 * 6 * PAIRS  # masters and bf16 copies
    assert base == pytest.approx(6 * MATRICES * bits / 8 + 2 * REST, rel=2e-3)


def test_the_layers_are_divided_over_all_ranks_and_gathered_one_by_one() -> None:
    whole = estimate_memory(MODEL, Layout(), WORK, adapter=adapter())
    divided = estimate_memory(MODEL, Layout(dp=2), WORK, adapter=adapter())
    layer = 2 * (MATRICES + 2 * 64)
    assert whole.weights - divided.weights == 3 * layer - 2 * layer
    once, halved = (estimate_memory(MODEL, Layout(dp=dp), WORK, adapter=adapter("nf4")).weights for dp in (1, 2))
    assert once - halved == pytest.approx(MATRICES * 4.129 / 8 + 4 * 64, rel=2e-3)


def test_known_models_have_the_adapters_that_others_report() -> None:
    """PEFT prints 41,943,040 for rank 16 on all linear layers of Llama 3 8B, and 207,093,760 of Llama 2 70B."""
    for raw, trained in ((adapters_table.LLAMA_3_1_8B, 41_943_040), (adapters_table.LLAMA_2_70B, 207_093_760)):
        model = from_hf_config(raw, where="config.json")
        assert replace(adapter(rows=0), lora=LoraSpec(rank=16, alpha=32, targets=TARGETS)).trained(model) == trained


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Settings]:
    """A project with tokenized sets, on a machine with one GPU of 80 GB."""
    monkeypatch.setattr(planner, "find_devices", lambda: Devices("cuda", 1, 80 * 10**9, "a GPU", bf16=True))
    config, settings = tiny.plannable(tmp_path, global_batch=8)
    tokenize_sets(config, settings)
    return config, settings


def large(tmp_path: Path, raw: dict[str, Any]) -> Settings:
    tiny.write_base(tmp_path / "large", weights=False, **raw)
    (tmp_path / "large.toml").write_text('[checkpoints.large]\n8 = "large"\n')
    return load_settings(tmp_path / "large.toml")


def rows_of(plan: RunPlan) -> dict[str, str]:
    return {row.label: row.text for row in plan_rows(plan, None, 1 << 40)}


def test_a_model_that_is_too_large_to_train_whole_is_offered_an_adapter(project, tmp_path: Path) -> None:
    config, _ = project
    settings = large(tmp_path, adapters_table.LLAMA_3_1_8B)
    config = replace(config, checkpoint="large", size=8)
    plan = make_plan(config, settings, ahead=True)
    kinds = {kind.name: kind for kind in plan.estimates.alternatives}
    assert list(kinds) == [FULL, FULL_8BIT, LORA, QLORA]
    assert kinds[FULL].chosen
    assert kinds[FULL].memory == plan.estimates.memory.total > 140e9
    assert 16e9 < kinds[LORA].memory < 22e9
    assert 7e9 < kinds[QLORA].memory < 11e9
    [told] = [warning for warning in plan.warnings if "run out of memory" in warning]
    needs = (
        f"With --adapter none --optimizer adamw8bit it needs {kinds[FULL_8BIT].memory / 1e9:.1f} GB, "
        f"with --adapter lora {kinds[LORA].memory / 1e9:.1f} GB, with --adapter lora --base_precision nf4"
    )
    assert needs in told
    assert smaller_kind(plan) == FULL_8BIT
    shown = rows_of(plan)
    assert "does not fit" in shown["with full"]
    assert "fits" in shown["with LoRA"]
    assert "--adapter lora --base_precision nf4" in shown["with QLoRA"]
    chosen = make_plan(replace(config, adapter="lora"), settings, ahead=True)
    assert {kind.name: kind.memory for kind in chosen.estimates.alternatives}[LORA] == chosen.estimates.memory.total
    assert smaller_kind(chosen) is None
    assert not any("run out of memory" in warning for warning in chosen.warnings)


def test_moments_in_8_bits_are_offered_before_an_adapter(project, tmp_path: Path, monkeypatch) -> None:
    """Of a model of 8e9 parameters on a card of 80 GB: eight bytes for each, and activations."""
    config, _ = project
    settings = large(tmp_path, adapters_table.LLAMA_3_1_8B)
    card = Devices("cuda", 1, 80 * 10**9, "a GPU", bf16=True)
    monkeypatch.setattr(planner, "find_devices", lambda: card)
    config = replace(config, checkpoint="large", size=8, recompute="full")
    plan = make_plan(config, settings, ahead=True)
    assert smaller_kind(plan) == FULL_8BIT
    chosen = make_plan(replace(config, optimizer="adamw8bit"), settings, ahead=True)
    memory, parameters = chosen.estimates.memory, chosen.base.model.num_parameters()
    assert (memory.weights, memory.gradients) == (2 * parameters, 4 * parameters)
    assert 64e9 < memory.total < 80e9
    assert not any("run out of memory" in warning for warning in chosen.warnings)
    kinds = {kind.name: kind for kind in chosen.estimates.alternatives}
    assert [kind.name for kind in kinds.values() if kind.chosen] == [FULL_8BIT]
    assert kinds[FULL_8BIT].memory == memory.total
    assert (
        chosen.estimates.checkpoint_bytes == kinds[FULL_8BIT].checkpoint_bytes == pytest.approx(4.03125 * parameters, rel=1e-6)
    )
    shown = rows_of(chosen)
    assert shown["with 8-bit AdamW"].endswith("this plan")
    assert "moments in 8 bits" in next(row.note for row in plan_rows(chosen, None, 1 << 40) if row.label == "precision")


@pytest.mark.parametrize("gpus", [(1, 80), (2, 80), (8, 24)], ids=str)
def test_a_kind_that_a_plan_of_its_own_would_fit_is_not_said_to_be_too_large(
    project, tmp_path: Path, monkeypatch, gpus
) -> None:
    """Where a small kind takes large micro-batches, or computes nothing again, a large one would not fit beside it."""
    config, _ = project
    settings = large(tmp_path, adapters_table.LLAMA_3_1_8B)
    number, gigabytes = gpus
    monkeypatch.setattr(planner, "find_devices", lambda: Devices("cuda", number, gigabytes * 10**9, "a GPU", bf16=True))
    words = " ".join(tiny.WORDS)
    rows = (json.dumps({"prompt": " ".join([words] * (1 + number % 9)), "gold": words}) for number in range(80))
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    kinds = {
        FULL: {},
        FULL_8BIT: {"optimizer": "adamw8bit"},
        LORA: {"adapter": "lora"},
        QLORA: {"adapter": "lora", "base_precision": "nf4"},
    }
    given: dict[str, Any] = {"checkpoint": "large", "size": 8, "seq": 2048, "global_batch": 32, "run_name": "long"}
    plans = {name: make_plan(replace(config, **given, **kind), settings, ahead=True) for name, kind in kinds.items()}
    fits = {name: plan.estimates.memory.total <= plan.estimates.device_memory for name, plan in plans.items()}
    assert set(fits.values()) == ({True} if number > 1 else {True, False})
    for name, plan in plans.items():
        found = {kind.name: kind.memory <= plan.estimates.device_memory for kind in plan.estimates.alternatives}
        assert found == fits, name


def test_an_adapter_may_have_moments_in_8_bits(project) -> None:
    config, settings = project
    plain = make_plan(replace(config, adapter="lora", precision="bf16"), settings)
    plan = make_plan(replace(config, adapter="lora", precision="bf16", optimizer="adamw8bit"), settings)
    assert plan.adapter is not None
    trained = plan.adapter.trained(plan.trained_model)
    assert plan.estimates.checkpoint_bytes == math.ceil(6.03125 * trained)
    less = plain.estimates.memory.optimizer - plan.estimates.memory.optimizer
    assert less == pytest.approx(5.96875 * trained, abs=trained * 0.01)


def test_what_a_plan_says_of_an_adapter(project) -> None:
    config, settings = project
    full, lora = make_plan(config, settings), make_plan(replace(config, adapter="lora"), settings)
    assert lora.adapter is not None
    trained = lora.adapter.trained(lora.trained_model)
    assert lora.estimates.checkpoint_bytes == 12 * trained < full.estimates.checkpoint_bytes
    shown = rows_of(lora)
    assert (
        shown["adapter"] == "LoRA of rank 16, alpha 32, on all linear layers, over a base in bf16" == adapter_text(lora.adapter)
    )
    assert shown["trained"] == trained_text(lora)
    assert "% of the model" in shown["trained"]
    assert shown["learning rate"].startswith("0.0002 to 2e-05")
    assert rows_of(full)["learning rate"].startswith("2e-05 to 2e-06")
    assert "adapter" not in rows_of(full)
    exported = {
        name: make_plan(replace(config, adapter="lora", export=name), settings) for name in ("merged", "adapter", "both")
    }
    sizes = {name: next(k.export_bytes for k in p.estimates.alternatives if k.chosen) for name, p in exported.items()}
    less = exported["both"].estimates.disk_needed - exported["merged"].estimates.disk_needed
    assert less == sizes["both"] - sizes["merged"]
    assert sizes["both"] == sizes["merged"] + sizes["adapter"]
    two = make_plan(replace(config, adapter="lora", export_checkpoint="both"), settings)
    assert two.estimates.disk_needed == exported["both"].estimates.disk_needed + sizes["both"]
    assert sizes["adapter"] == 4 * trained
    again = RunPlan.from_json(json.loads(lora.to_json()))
    assert again == lora


def test_targets_in_words(project) -> None:
    config, settings = project
    for targets, words in (
        ("attention", "on the linear layers of attention,"),
        ("mlp", "on the linear layers of the feed-forward part,"),
        ("q_proj,v_proj", "on q_proj, v_proj,"),
    ):
        plan = make_plan(replace(config, adapter="lora", lora_targets=targets, rslora=True), settings)
        assert plan.adapter is not None
        assert words in adapter_text(plan.adapter)
        assert "root of the rank" in adapter_text(plan.adapter)


def test_bars_have_one_length_and_one_scale(project, tmp_path: Path) -> None:
    config, _ = project
    plan = make_plan(replace(config, checkpoint="large", size=8), large(tmp_path, adapters_table.LLAMA_3_1_8B), ahead=True)
    bars = {kind.name: bar for kind, bar, _ in kind_bars(plan)}
    assert len({len(bar) for bar in bars.values()}) == 1
    assert bars[FULL].count("█") == len(bars[LORA].rstrip())
    assert "▒" in bars[FULL]
    assert bars[LORA].count("█") > bars[QLORA].count("█") > 0


def test_the_original_has_no_such_choice(project) -> None:
    config, settings = project
    plan = make_plan(replace(config, compat="megatron-llm"), settings)
    assert plan.estimates.alternatives == ()
    assert not any(label.startswith("with ") for label in rows_of(plan))


def test_the_table_of_the_page_is_what_a_plan_makes() -> None:
    """`python tests/adapters_table.py` writes it anew."""
    page = adapters_table.PAGE.read_text(encoding="utf-8")
    assert adapters_table.split(page)[1].strip() == adapters_table.needs_table().strip()


def test_the_card_and_the_monitor_name_the_adapter(project, tmp_path: Path) -> None:
    config, settings = project
    lora, full = make_plan(replace(config, adapter="lora"), settings), make_plan(config, settings)
    assert lora.adapter is not None
    card = model_card(lora, RunView(), 0)
    assert f"| Adapter | {adapter_text(lora.adapter)} |" in card
    assert f"| Trained | {trained_text(lora)} |" in card
    assert trained_text(lora, lora.adapter.rows) == trained_text(lora)
    more = lora.adapter.rows + 2
    assert f"with the rows of {more} new or untrained tokens |" in model_card(lora, RunView(), 0, trained_rows=more)
    assert "with the rows" not in trained_text(lora, 0)
    assert "| Learning rate | 0.0002 to 2e-05, cosine" in card
    assert "Adapter" not in model_card(full, RunView(), 0)
    for plan, label in ((lora, "LoRA of rank 16, "), (full, "")):
        run = RunDir(tmp_path / (label[:4] or "full"))
        run.create(plan.to_json())
        assert PlanFacts.of(run).adapter.startswith(label)
        assert bool(PlanFacts.of(run).adapter) is bool(label)


def test_an_earlier_full_run_says_nothing_of_the_time_of_an_adapter(project) -> None:
    config, settings = project
    full, lora = make_plan(config, settings), make_plan(replace(config, adapter="lora"), settings)
    run = RunDir(Path(full.run_dir))
    run.create(full.to_json())
    writer = EventWriter(run.events_path)
    writer.write("step", iteration=1, total=9, loss=1.0, tokens=1, tokens_per_second=50.0)
    writer.close()
    assert forecast(full) is not None
    assert forecast(lora) is None


@pytest.mark.parametrize(
    ("rank", "said"),
    [(16, None), (32, None), (33, "k_proj, v_proj can have, 32"), (80, "k_proj, v_proj can have, 32")],
)
def test_a_rank_above_that_of_a_matrix_is_said(rank: int, said: str | None) -> None:
    lora = LoraSpec(rank=rank, alpha=32.0, targets=TARGETS, rslora=False)
    lines = adapter_concerns(lora, MODEL)
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]
    assert adapter_concerns(None, MODEL) == []
    of_queries = adapter_concerns(replace(lora, targets=("q_proj",)), MODEL)
    assert [line for line in of_queries if "q_proj can have, 64" in line] == of_queries
    assert len(of_queries) == (rank > 64)
