"""A run that begins with an adapter on disk begins where the training of that adapter ended."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapters import logits_with, write_peft
from safetensors.torch import load_file, save_file

from medsft.core.config.run_config import RunConfig
from medsft.core.data.tokenizers.template import Role
from medsft.core.engine.commands.export import export_run
from medsft.core.engine.train.build import build_trainer
from medsft.core.engine.train.validate import validate
from medsft.core.models.adapter_folder import read_adapter
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import open_splits
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings, add_checkpoint, load_settings

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

LAYOUTS = [(1, 1, 1), (1, 1, 2)]
LORA: dict[str, Any] = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_targets": "q_proj,down_proj"}


def begin(rank: tiny.Rank) -> float:
    """Train, and return the loss on the validation set from before the first iteration."""
    trainer = build_trainer(rank.plan, rank.run, rank.mesh, rank.events)
    assert trainer.val_batches is not None
    before = validate(trainer.executor, trainer.val_batches, trainer.mesh).loss
    assert trainer.train()
    return before


def named(made: tuple[RunConfig, Settings], folder: Path, adapter: Path) -> tuple[RunConfig, Settings]:
    """A project whose checkpoint is an adapter of that of another, and which gives none of its values."""
    settings = folder / "medsft.toml"
    add_checkpoint(settings, "ward", 0.001, adapter)
    config = replace(made[0], checkpoint="ward", adapter="lora", tokenized_data_dir=folder / "tokenized-ward")
    return config, load_settings(settings)


@pytest.mark.parametrize("base_precision", [None, "nf4"])
def test_ten_iterations_and_then_others(tmp_path, base_precision):
    made = tiny.project(tmp_path, tie_word_embeddings=base_precision is None)
    first = tiny.plan_at(made, tmp_path, (1, 1, 1), **LORA, base_precision=base_precision, iters=10)
    *_, (ended,) = tiny.series(tiny.train(first), "eval", "loss")
    export_run(RunDir(Path(first.run_dir)), tmp_path / "out", form="adapter")
    ours = named(made, tmp_path, tmp_path / "out" / "adapter")
    for layout in LAYOUTS:
        plan = tiny.plan_at(ours, tmp_path, layout)
        assert plan.config.lora == first.config.lora
        assert plan.config.base_precision == base_precision
        assert plan.base.trained_rows == 2
        assert not [line for line in plan.warnings if "trained" in line]
        figures, before = tiny.in_ranks(begin, plan, tmp_path)
        assert before == ([ended] if layout == (1, 1, 1) else [pytest.approx(ended, abs=1e-6)] * 2)
        continue_without_the_adapter(plan, tmp_path, figures)


def continue_without_the_adapter(plan: RunPlan, folder: Path, figures: list[tuple[float, float]]) -> None:
    """A checkpoint has all that a resume needs of it."""
    assert plan.base.adapter is not None
    away = folder / "away"
    Path(plan.base.adapter.path).rename(away)
    tiny.go_back_to(tiny.create(plan), 3)
    again, _ = tiny.in_ranks(begin, plan, folder)
    assert again == figures[3:]
    away.rename(plan.base.adapter.path)


def loss_elsewhere(plan: RunPlan, adapter: Path) -> float:
    """The loss on the validation set by transformers, with the adapter beside its layers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plan.base.path, dtype=torch.float32)
    model.resize_token_embeddings(plan.base.model.vocab_size, mean_resizing=False)
    _, val = open_splits(plan)
    assert val is not None
    total, count = 0.0, 0
    for document in val.subset.indices:
        tokens = torch.from_numpy(val.data.tokens(int(document)).astype("int64"))
        answer = torch.from_numpy((val.data.roles(int(document)) == Role.ANSWER)[1:])
        nll = torch.nn.functional.cross_entropy(logits_with(adapter, model, tokens[:-1]), tokens[1:], reduction="none")
        total, count = total + float(nll[answer].sum()), count + int(answer.sum())
    return total / count


def test_an_adapter_of_another_program(tmp_path):
    """One in PEFT's format, with a row of the base beside those of new tokens, in the embedding alone."""
    made = tiny.project(tmp_path)
    rows = {"embed_tokens": [84, 85, 3], "lm_head": [85, 84]}
    folder = write_peft(tmp_path / "peft", tmp_path / "base", rows=rows, seed=5, use_rslora=True, lora_dropout=0.1)
    other = named(made, tmp_path, folder)
    for layout in LAYOUTS:
        plan = tiny.plan_at(other, tmp_path, layout, iters=4)
        assert plan.base.adapter is not None
        assert plan.base.adapter.rows == (3, 84, 85)
        assert any("dropout" in line for line in plan.warnings)
        expected = loss_elsewhere(plan, folder)
        figures, before = tiny.in_ranks(begin, plan, tmp_path)
        assert before == [pytest.approx(expected, rel=1e-5)] * plan.layout.world
        assert all(math.isfinite(loss) for loss, _ in figures)
    export_run(RunDir(Path(plan.run_dir)), tmp_path / "out")
    exported = read_adapter(tmp_path / "out" / "adapter")
    assert exported.rows == {EMBEDDING: (3, 84, 85), OUTPUT: (3, 84, 85)}
    assert exported.lora == read_adapter(folder).lora
    for table, key in ((EMBEDDING, "model.embed_tokens.weight"), (OUTPUT, "lm_head.weight")):
        base, now = (load_file(path / "model.safetensors")[key] for path in (tmp_path / "base", tmp_path / "out"))
        changed = (now[:84] != base).any(1).nonzero().flatten().tolist()
        assert changed == [3], table
    assert "Trained on from | the adapter" in (tmp_path / "out" / "README.md").read_text()
    assert "Trained on from | the adapter" in (tmp_path / "out" / "adapter" / "README.md").read_text()


def test_numbers_that_are_none_are_refused(tmp_path):
    made = tiny.project(tmp_path, rows=8)
    folder = write_peft(tmp_path / "peft", tmp_path / "base", seed=5)
    values = load_file(folder / "adapter_model.safetensors")
    next(iter(values.values()))[0, 0] = math.nan
    save_file(values, folder / "adapter_model.safetensors")
    plan = tiny.plan_at(named(made, tmp_path, folder), tmp_path, (1, 1, 1), iters=1)
    with pytest.raises(Exception, match="The adapter that the run begins with holds NaN or infinity"):
        tiny.in_ranks(begin, plan, tmp_path)
