"""Adapters in PEFT's format: written and read back, by names and shapes, and by what PEFT itself computes where it is
installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from adapters import PREFIX, logits_with, stored
from safetensors.torch import load_file
from torch import Tensor

from medsft.core.config.lora import TRAINED_ROWS, LoraSpec
from medsft.core.engine.formats.adapters import StoredAdapter, open_adapter
from medsft.core.engine.formats.peft import fill_peft
from medsft.core.models.adapter_folder import check_fits, read_adapter
from medsft.core.models.config import read_hf_config

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def made(base: Path, rows: dict[str, list[int]], lora: LoraSpec) -> tuple[StoredAdapter, dict[str, Tensor]]:
    """An adapter of random numbers that are large enough to be seen in logits."""
    model = read_hf_config(base)
    torch.manual_seed(5)
    values = {name: 0.2 * torch.randn(shape) for name, shape in lora.shapes(model)}
    values |= {TRAINED_ROWS[table]: 0.2 * torch.randn(len(ids), model.hidden_size) for table, ids in rows.items()}
    return StoredAdapter(lora=lora, rows=rows, read=values.__getitem__), values


@pytest.mark.parametrize(
    ("lora", "rows"),
    [
        (LoraSpec(rank=3, alpha=6, targets=ATTENTION), {}),
        (LoraSpec(rank=2, alpha=0.5, targets=("down_proj",), rslora=True), {EMBEDDING: [84, 85], OUTPUT: [3, 84, 85]}),
    ],
)
def test_what_is_written_is_read_again(tmp_path, lora, rows):
    base = tiny.write_base(tmp_path / "base")
    model = read_hf_config(base)
    adapter, values = made(base, rows, lora)
    folder = tmp_path / "adapter"
    folder.mkdir()
    fill_peft(folder, adapter, model, base=str(base), fingerprint="f00", base_precision="bf16")
    again = read_adapter(folder)
    check_fits(again, model, where="base")
    assert again.lora == lora
    assert again.rows == {table: tuple(ids) for table, ids in rows.items()}
    assert (again.base, again.base_fingerprint, again.base_precision) == (str(base), "f00", "bf16")
    opened = open_adapter(again)
    assert all(torch.equal(opened.read(name), value) for name, value in values.items())
    # What another program must find, without our own reader.
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")
    assert config["target_modules"] == list(lora.targets)
    assert (config["peft_type"], config["task_type"], config["r"]) == ("LORA", "CAUSAL_LM", lora.rank)
    assert config["lora_alpha"] == lora.alpha
    names = {f"{PREFIX}{table.removesuffix('.weight')}.token_adapter.trainable_tokens_delta" for table in rows}
    assert tensors.keys() == stored(model, lora.rank, lora.targets).keys() | names
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert ("trainable_token_indices" in config) == bool(rows)


@pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ids", [[], [80, 82], [80, 84, 85]])
def test_peft_computes_what_was_trained(tmp_path, tied, ids):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny.write_model(tmp_path / "base", tie_word_embeddings=tied)
    rows = {table: ids for table in ([EMBEDDING] if tied else [EMBEDDING, OUTPUT]) if ids}
    adapter, _ = made(base, rows, LoraSpec(rank=3, alpha=6, targets=ATTENTION))
    folder = tmp_path / "adapter"
    folder.mkdir()
    fill_peft(folder, adapter, read_hf_config(base), base=str(base))
    tokens = torch.tensor([1, 5, 80, *ids, 9])

    def opened():
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(max([83, *ids]) + 1, mean_resizing=False)
        return model

    with torch.no_grad():
        theirs = PeftModel.from_pretrained(opened(), folder)(input_ids=tokens[None]).logits[0]
        assert (theirs - logits_with(folder, opened(), tokens)).abs().max() < 1e-6
        if max(ids, default=0) < 84:
            loaded = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens[None]).logits[0]
            assert (theirs - loaded).abs().max() < 1e-6
