"""The model of a run that trained an adapter: merged, by itself, and both, and that the two compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from adapters import logits_with
from safetensors.torch import load_file
from tiny_tokenizers import write_sentence_piece

from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.engine.commands.export import export_run
from medsft.core.engine.commands.merge import merge
from medsft.core.engine.formats.adapters import base_as_held
from medsft.core.engine.formats.open import open_source
from medsft.core.models.adapter_folder import read_adapter
from medsft.core.models.conversion import Conversion, look_at_source
from medsft.core.models.inspect import inspect_base
from medsft.core.models.merging import Merge
from medsft.core.models.tensors import EMBEDDING
from medsft.core.planning.plan import RunPlan
from medsft.core.run.exports import check_request, look_at_export
from medsft.core.run.integrity import export_damage, read_export
from medsft.core.run.rundir import RunDir
from medsft.core.settings import load_settings
from medsft.errors import ConfigError, MismatchError

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


def trained(folder: Path, **changes) -> tuple[RunPlan, RunDir]:
    config, _ = tiny.project(folder, rows=16, **changes.pop("model", {}))
    if changes.pop("sentence_piece", False):
        tiny.write_model(folder / "base", vocab_size=32000)
        (folder / "base" / "tokenizer.json").unlink()
        write_sentence_piece(folder / "base")
    lora = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 16, "iters": 4, "nproc_per_node": 1, "lr": 2e-2}
    plan = tiny.plan_of(config, load_settings(folder / "medsft.toml"), **(lora | changes))
    tiny.train(plan)
    return plan, RunDir(Path(plan.run_dir))


def loaded(folder: Path, rows: int | None = None):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def held(folder: Path, rows: int, precision: str):
    """The base as it was while the adapter was trained."""
    model, source = loaded(folder), base_as_held(open_source(folder), precision)
    model.load_state_dict({name: source.read(name).float() for name in source.names()}, strict=False)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"tie_word_embeddings": True}, "lora_targets": "attention", "rslora": True},
        {"sentence_piece": True},
        {"base_precision": "nf4", "lora_targets": "mlp"},
        {"base_precision": "bf16"},
    ],
)
def test_merged_and_adapter_compute_the_same(tmp_path, changes):
    plan, run = trained(tmp_path, **changes)
    taken = export_run(run, tmp_path / "out")
    folder, size = tmp_path / "out", plan.base.model.vocab_size
    adapter = read_adapter(folder / "adapter")
    new = range(plan.base.base_vocab_size, size)
    assert adapter.lora == plan.config.lora
    assert adapter.base == str(tmp_path / "base")
    assert adapter.base_fingerprint == plan.base.fingerprint
    assert set(new) <= set(next(iter(adapter.rows.values())))
    tokens = torch.tensor([5, 9, *list(new)[-3:], 60, 83])
    with torch.no_grad():
        merged = loaded(folder)(input_ids=tokens[None]).logits[0]
        base = loaded(tmp_path / "base")(input_ids=torch.tensor([[5, 9, 60]])).logits[0]
    apart = logits_with(folder / "adapter", held(tmp_path / "base", size, changes.get("base_precision", "")), tokens)
    assert (merged - apart).abs().max() < 1e-5
    assert (merged[:2, : base.shape[1]] - base[:2]).abs().max() > 1e-2
    # The same through the command, by the folder alone.
    again = merge(Merge(adapter=folder / "adapter", to=tmp_path / "again"))
    assert again.warnings == ()
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")]
    stop = open_tokenizer(tmp_path / "base").stop_id
    assert [config["eos_token_id"] for config in configs] == [stop, stop]
    ends = [
        json.loads((path / "generation_config.json").read_text()) for path in (folder, folder / "adapter", tmp_path / "again")
    ]
    assert ends[0] == ends[1]
    assert [ends[2]["eos_token_id"]] in (ends[0]["eos_token_id"], [ends[0]["eos_token_id"]])
    # And a run as it is: what it is asked by, and what another run starts from.
    source = open_source(run.path)
    assert inspect_base(run.path).config == plan.base.model == source.config, "no padding, that would be new tokens"
    assert all(torch.equal(source.read(name), one[name]) for name in one)
    assert source.read("lm_head.weight" if "lm_head.weight" in one else EMBEDDING, (slice(3, 5),)).shape[0] == 2
    with pytest.raises(MismatchError, match="--export merged"):
        look_at_source(Conversion(source=run.path, destination=tmp_path / "other", to="hf"))
    assert "vLLM does not load it" in "".join(taken.notes)
    assert "over" in taken.rounding
    assert not taken.rounding_matters


def test_forms_damage_and_cards(tmp_path):
    plan, run = trained(tmp_path, lora_rank=24)
    export_run(run, Path(plan.export_dir))
    assert look_at_export(plan, run).damage is None
    folder = Path(plan.export_dir)
    record = read_export(folder)
    assert {"adapter/adapter_model.safetensors", "adapter/README.md", "adapter/tokenizer.json"} <= record["files"].keys()
    assert record["rounding"]["tokens"] > 8
    rows = next(iter(read_adapter(folder / "adapter").rows.values()))
    card = (folder / "adapter" / "README.md").read_text()
    assert f'base_model: "{tmp_path / "base"}"' in card
    assert "base_model_relation: adapter" in card
    cards = card, (folder / "README.md").read_text()
    assert all(f"with the rows of {len(rows)} new" in text for text in cards)
    assert all("| Rows read as | qa: question `prompt`, answer `gold` |" in text for text in cards)
    assert ("`Modelfile`" in card, "`Modelfile`" in cards[1]) == (False, True)
    assert [path.parent for path in folder.rglob("Modelfile")] == [folder], "an adapter alone is nothing that Ollama takes so"
    assert "resize_token_embeddings(86)" in card
    assert "in a logit" in (folder / "README.md").read_text() or "a logit differs" in (folder / "README.md").read_text()
    described = folder / "adapter" / "adapter_config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "base_model_name_or_path": "elsewhere"}))
    assert export_damage(folder) is None, "the card tells people to name the base in this file"
    (folder / "adapter" / "tokenizer.json").write_text("{}")
    assert "adapter/tokenizer.json" in export_damage(folder)

    merged = export_run(run, tmp_path / "merged", form="merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    assert merged.notes == ()
    alone = export_run(run, tmp_path / "alone", form="adapter")
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["README.md", "adapter", "medsft.json"]
    assert "THIS_FOLDER/adapter" in (tmp_path / "alone" / "README.md").read_text()
    assert alone.rounding is None
    assert export_damage(tmp_path / "alone") is None
    with pytest.raises(MismatchError, match=r"only an adapter in .*/alone/adapter"):
        inspect_base(tmp_path / "alone")

    with pytest.raises(ConfigError, match="adpater"):
        check_request(run, tmp_path / "new", None, "adpater")
    base = tmp_path / "base" / "model.safetensors"
    base.write_bytes(base.read_bytes()[:-64] + b"\0" * 64)
    with pytest.raises(MismatchError, match="not those of the base model"):
        export_run(run, tmp_path / "later")
    assert not (tmp_path / "later").exists()


def test_a_run_that_trained_all_weights_has_no_adapter_to_choose(tmp_path):
    config, settings = tiny.project(tmp_path, rows=8)
    run = tiny.create(tiny.plan_of(config, settings, nproc_per_node=1))
    with pytest.raises(ConfigError, match="trained all weights"):
        check_request(run, tmp_path / "new", None, "adapter")
