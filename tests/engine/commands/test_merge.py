"""`medsft merge`: the merged model computes what base and adapter compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from adapters import logits_with, write_peft
from safetensors.torch import load_file, save_file
from tiny_tokenizers import write_sentence_piece

from medsft.core.config.lora import TARGETS
from medsft.core.data.tokenizers.export import export_tokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.engine.commands.merge import merge
from medsft.core.models.merging import Merge
from medsft.core.planning.base import sampled_fingerprint
from medsft.errors import ConfigError, MismatchError


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=tokens[None]).logits[0]


def with_adapter(base: Path, folder: Path, tokens: torch.Tensor, rows: int) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return logits_with(folder, model, tokens)


@pytest.mark.parametrize(
    ("family", "tied", "ids"),
    [("llama", False, []), ("llama", True, [3, 84, 85]), ("qwen2", False, [3, 84, 85]), ("qwen3", True, [83])],
)
def test_the_merged_model_computes_the_same(tmp_path, family, tied, ids):
    base = tiny.write_model(tmp_path / "base", family, tie_word_embeddings=tied)
    rows = {module: ids for module in ("embed_tokens", *([] if tied else ["lm_head"])) if ids}
    adapter = write_peft(tmp_path / "adapter", base, targets=TARGETS, rows=rows, seed=1, use_rslora=tied)
    merged = merge(Merge(adapter=adapter, to=tmp_path / "merged"))
    size = max(84, *ids, 0) + (max(ids, default=0) > 83)
    assert merged.vocab_size == size
    assert merged.dtype == "float32"
    assert merged.warnings == ()
    assert merged.rounding.largest < 1e-5
    assert merged.rounding.other_choices == 0
    tokens = torch.tensor([1, 7, *ids, 60, 2])
    mine = with_adapter(base, adapter, tokens, size)
    assert (mine - logits(tmp_path / "merged", tokens)).abs().max() < 1e-5
    assert (mine[:, :84] - logits(base, tokens[tokens < 84])[0, :84]).abs().max() > 1e-2, "the adapter does something"
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (tmp_path / "merged" / "Modelfile").exists(), "nobody knows how it is prompted"


def test_a_base_with_a_sentencepiece_model_and_added_tokens(tmp_path):
    base = tiny.write_model(tmp_path / "base", vocab_size=32000)
    (base / "tokenizer.json").unlink()
    write_sentence_piece(base)
    opened = open_tokenizer(base)
    ids = list(range(32000, opened.tokenizer.vocab_size))
    assert len(ids) > 14
    adapter = write_peft(tmp_path / "adapter", base, targets=TARGETS, rows={"embed_tokens": ids, "lm_head": ids}, seed=2)
    export_tokenizer(opened, adapter)
    merged = merge(Merge(adapter=adapter, base=base, to=tmp_path / "merged"))
    assert merged.vocab_size == opened.tokenizer.vocab_size
    assert merged.warnings == ()
    tokens = torch.tensor([5, ids[-2], 400, 31999, ids[-1], ids[0]])
    difference = with_adapter(base, adapter, tokens, merged.vocab_size) - logits(tmp_path / "merged", tokens)
    assert difference.abs().max() < 1e-5
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["eos_token_id"] == opened.stop_id, "the merged model ends its answers"
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"][0] == opened.stop_id
    assert open_tokenizer(tmp_path / "merged").tokenizer.vocab_size == merged.vocab_size
    assert "answer" in (tmp_path / "merged" / "Modelfile").read_text()


def test_whole_tables_take_the_place_of_the_base_s(tmp_path):
    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=True)
    names = ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight")
    more = dict.fromkeys(names, ("F32", (90, 32)))
    adapter = write_peft(tmp_path / "adapter", base, more=more, modules_to_save=["embed_tokens", "lm_head"], seed=3)
    with pytest.raises(MismatchError, match="two different tables"):
        merge(Merge(adapter=adapter, to=tmp_path / "merged"))
    values = load_file(adapter / "adapter_model.safetensors")
    values[names[1]] = values[names[0]].clone()
    save_file(values, adapter / "adapter_model.safetensors")
    assert merge(Merge(adapter=adapter, to=tmp_path / "merged")).vocab_size == 90
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(written["model.embed_tokens.weight"], values[names[0]])
    assert "lm_head.weight" not in written


def test_one_rounding_and_what_it_changes(tmp_path):
    base = tiny.write_model(tmp_path / "base")
    adapter = write_peft(tmp_path / "adapter", base, seed=1, lora_alpha=0.001)
    merged = merge(Merge(adapter=adapter, to=tmp_path / "merged", dtype="bf16"))
    name = "model.layers.0.self_attn.q_proj"
    values = load_file(adapter / "adapter_model.safetensors")
    first, second = (values[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    exact = load_file(base / "model.safetensors")[f"{name}.weight"].double() + 0.001 / 4 * second.double() @ first.double()
    written = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    assert (written != exact.bfloat16()).float().mean() < 1e-3, "but where fp32 is half way between two numbers"
    assert merged.rounding.largest > merged.rounding.mean > 0
    assert merged.dtype == "bfloat16"
    assert "64 tokens drawn at random" in merged.notes[0]


def test_tensors_of_torch_save_and_bf16(tmp_path):
    base = tiny.write_model(tmp_path / "base")
    adapter = write_peft(tmp_path / "adapter", base, seed=1)
    merge(Merge(adapter=adapter, to=tmp_path / "one"))
    values = {name: value.bfloat16().float() for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(values, adapter / "adapter_model.safetensors")
    merge(Merge(adapter=adapter, to=tmp_path / "rounded"))
    torch.save({name: value.bfloat16() for name, value in values.items()}, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    merge(Merge(adapter=adapter, to=tmp_path / "pickle"))
    one, rounded, pickled = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "rounded", "pickle"))
    assert all(torch.equal(rounded[name], pickled[name]) for name in rounded)
    assert any(not torch.equal(rounded[name], one[name]) for name in rounded)


def test_the_base_is_looked_for_and_compared(tmp_path):
    base = tiny.write_model(tmp_path / "base")
    nameless = write_peft(tmp_path / "nameless", base, seed=1, base_model_name_or_path=None)
    with pytest.raises(ConfigError, match="does not say which base model"):
        merge(Merge(adapter=nameless, to=tmp_path / "merged"))
    elsewhere = write_peft(tmp_path / "elsewhere", base, seed=1, base_model_name_or_path="meta-llama/Llama-3.1-8B")
    with pytest.raises(ConfigError, match=r"meta-llama/Llama-3\.1-8B, which is not here"):
        merge(Merge(adapter=elsewhere, to=tmp_path / "merged"))
    values = load_file(elsewhere / "adapter_model.safetensors")
    for fingerprint, warned in ((sampled_fingerprint(base), 0), ("of another", 1)):
        save_file(values, elsewhere / "adapter_model.safetensors", metadata={"medsft.base": fingerprint})
        merged = merge(Merge(adapter=elsewhere, base=base, to=tmp_path / f"merged-{warned}"))
        assert len(merged.warnings) == warned
    assert "not those that the adapter was trained on" in merged.warnings[0]


def test_rows_of_which_the_adapter_knows_nothing_are_named(tmp_path):
    base = tiny.write_model(tmp_path / "base")
    adapter = write_peft(tmp_path / "adapter", base, rows={"embed_tokens": [85]}, seed=1)
    merged = merge(Merge(adapter=adapter, base=base, to=tmp_path / "merged"))
    assert merged.vocab_size == 86
    assert "no values for 2 of the rows" in merged.warnings[0]
