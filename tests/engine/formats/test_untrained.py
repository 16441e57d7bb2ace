"""Rows of tokens that the base never trained: new ones, wherever their row lies, and ones that were only reserved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from medsft.core.engine.formats.open import open_source
from medsft.core.engine.formats.untrained import untrained_rows
from medsft.core.engine.train.base_weights import base_source
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.core.planning.base_plan import BasePlan
from medsft.core.planning.plan import RunPlan

pytestmark = pytest.mark.timeout(120)
START, END = "<|im_start|>", "<|im_end|>"
TOKENS = 84
"""Tokens of the tiny tokenizer; the template's two come behind them."""


def change_tables(base: Path, change) -> None:
    """Write the two tables anew, each as `change` gives it, and their rows into config.json."""
    weights = load_file(base / "model.safetensors")
    for table in (EMBEDDING, OUTPUT):
        weights[table] = change(weights[table])
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": len(weights[EMBEDDING])}))


def padded(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table, torch.zeros(12, table.shape[1])])


def first_step(plan: RunPlan) -> tuple[float, ...]:
    [step] = tiny.series(tiny.train(plan), "step", "loss", "grad_norm")
    return step


def test_a_token_in_the_padding_begins_as_one_behind_the_table(tmp_path):
    norms = []
    for name, change in (("cut", None), ("padded", padded)):
        config, settings = tiny.project(tmp_path / name)
        if change:
            change_tables(tmp_path / name / "base", change)
        plan = tiny.plan_of(config, settings, iters=1)
        assert plan.base.added_tokens == (START, END)
        source, _ = base_source(plan)
        rows = [source.read(table, (slice(TOKENS, TOKENS + 2),)) for table in (EMBEDDING, OUTPUT)]
        expected = [open_source(tmp_path / name / "base").read(table)[:TOKENS].mean(0) for table in (EMBEDDING, OUTPUT)]
        for made, mean in zip(rows, expected, strict=True):
            torch.testing.assert_close(made, mean.expand(2, -1))
        norms.append(first_step(plan)[1])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


@pytest.mark.parametrize("how", ["copy_last", "mean"])
def test_new_token_init_holds_in_the_padding_too(tmp_path, how):
    config, settings = tiny.project(tmp_path)
    change_tables(tmp_path / "base", padded)
    plan = tiny.plan_of(config, settings, new_token_init=how)
    base, (source, notes) = open_source(tmp_path / "base"), base_source(plan)
    for table in (EMBEDDING, OUTPUT):
        trained = base.read(table)[:TOKENS]
        wanted = trained[-1] if how == "copy_last" else trained.mean(0)
        torch.testing.assert_close(source.read(table)[TOKENS : TOKENS + 2], wanted.expand(2, -1))
        assert torch.equal(source.read(table)[:TOKENS], trained)
        block = source.read(table, (slice(TOKENS - 1, TOKENS + 1), slice(3, 9)))  # as a rank reads its shard
        assert torch.equal(block, source.read(table)[TOKENS - 1 : TOKENS + 1, 3:9])
    assert not notes


def test_reserved_tokens_that_the_base_never_trained_are_made_and_named(tmp_path):
    """As in Llama 3's base models: the tokenizer has the control tokens, their rows are next to nothing."""
    config, settings = tiny.project(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    tokenizer.add_special_tokens([START, END, "<|reserved|>"])
    tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    change_tables(tmp_path / "base", lambda table: torch.cat([table, 1e-20 * torch.randn(3, table.shape[1])]))
    plan = tiny.plan_of(config, settings, iters=1)
    assert (plan.base.added_tokens, plan.base.control_tokens) == ((), {START: TOKENS, END: TOKENS + 1})
    source, [note] = base_source(plan)
    assert f"never trained the rows of {START}, {END}" in note
    for table in (EMBEDDING, OUTPUT):
        kept = open_source(tmp_path / "base").read(table)
        made = source.read(table)
        assert torch.equal(made[:TOKENS], kept[:TOKENS])
        assert torch.equal(made[TOKENS + 2], kept[TOKENS + 2]), "a row that no document holds stays as it is"
        assert made[TOKENS].norm() > 1e-3 * kept[:TOKENS].norm(dim=1).median()
    events = tiny.train(plan)
    assert any(note == event.data.get("message") for event in events if event.kind == "warning")
    assert tiny.series(events, "step", "grad_norm")[0][0] < 100


def test_the_original_leaves_rows_as_they_are_and_a_plan_of_before_too(tmp_path):
    config, settings = tiny.project(tmp_path)
    change_tables(tmp_path / "base", padded)
    for plan in (
        tiny.plan_of(config, settings, compat="megatron-llm", tp=1),
        old_plan(tiny.plan_of(config, settings, compat="none")),
    ):
        source, _ = base_source(plan)
        assert not source.read(EMBEDDING, (slice(TOKENS, TOKENS + 12),)).any()


def old_plan(plan: RunPlan) -> RunPlan:
    """The plan as medsft 0.1.0 would have written it: without what it did not know."""
    raw = json.loads(plan.to_json())
    for name in ("reused_rows", "control_tokens", "token_rows"):
        del raw["base"][name]
    old = RunPlan.from_json(raw)
    assert old.identity == plan.identity, "such a run goes on"
    return old


def test_rows_are_told_apart(tmp_path):
    tiny.write_model(tmp_path / "base")

    def change(table: torch.Tensor) -> torch.Tensor:
        table[10] = 0  # zeros
        table[20] = table[21]  # a copy of its neighbor, which is one of it
        table[30] *= 1e-6  # next to nothing
        table[40] *= 0.1  # short, as a rare token's may be
        table[50] = table[60]  # copies, far from each other
        return table

    change_tables(tmp_path / "base", change)
    found = untrained_rows(open_source(tmp_path / "base"), [5, 10, 20, 30, 40, 50, 60, 10**6])
    assert found == {table: frozenset({10, 20, 30, 50, 60}) for table in (EMBEDDING, OUTPUT)}


def test_weights_that_are_not_finite_are_the_base_s_fault(tmp_path):
    config, settings = tiny.project(tmp_path)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    weights[name][3, 4] = float("nan")
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    plan = tiny.plan_of(config, settings, iters=1)
    with pytest.raises(Exception, match="exit"):
        tiny.train(plan)
    [error] = Path(plan.run_dir).glob("control/error_rank_0.json")
    reason = json.loads(error.read_text())["reason"]
    assert "model.safetensors: the weights of the base model hold NaN or infinity" in reason
    assert name in reason
    assert "document" not in reason


def test_fields_of_the_base_plan_survive_the_file(tmp_path):
    config, settings = tiny.project(tmp_path)
    plan = tiny.plan_of(config, settings)
    base = replace(plan.base, reused_rows={"a": 3}, control_tokens={"b": 4}, token_rows=5)
    read = RunPlan.from_json(json.loads(replace(plan, base=base).to_json())).base
    assert isinstance(read, BasePlan)
    assert read == base
