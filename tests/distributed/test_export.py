"""The files of a finished model: what they name agrees with the documents, and with one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_tokenizers import write_llama_3, write_qwen, write_sentence_piece

from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.engine.commands.export import export_run
from medsft.core.planning.plan import RunPlan
from medsft.core.run.rundir import RunDir
from medsft.core.settings import load_settings

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

WRITE = {"sentence-piece": write_sentence_piece, "llama-3": write_llama_3, "qwen": write_qwen}


@pytest.mark.parametrize(
    ("base", "template"), [("sentence-piece", "meditron"), ("llama-3", "chatml"), ("llama-3", "model"), ("qwen", "model")]
)
def test_ends_padding_and_ids_agree(tmp_path: Path, base: str, template: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, _ = tiny.project(tmp_path, rows=8)
    tiny.write_model(tmp_path / "base", vocab_size=32000 if base == "sentence-piece" else 320)
    (tmp_path / "base" / "tokenizer.json").unlink()
    WRITE[base](tmp_path / "base")
    ids = open_tokenizer(tmp_path / "base").tokenizer.special_ids
    others = [ids[name] for name in ("<|end_of_text|>", "<|eot_id|>", "<|endoftext|>", "</s>") if name in ids]
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [*others, 7]}))
    plan = tiny.plan_of(config, load_settings(tmp_path / "medsft.toml"), template=template, iters=1, nproc_per_node=1)
    assert set(others) <= {plan.base.model.eos_token_id, *plan.base.model.other_end_token_ids}
    assert RunPlan.from_json(json.loads(plan.to_json())).base == plan.base
    tiny.train(plan)
    folder = Path(export_run(RunDir(Path(plan.run_dir)), tmp_path / "out").folder)

    tokenizer, opened = AutoTokenizer.from_pretrained(folder), open_tokenizer(tmp_path / "base", template=template)
    model = AutoModelForCausalLM.from_pretrained(folder)
    stop = opened.stop_id
    assert stop == tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id[0]
    assert set(model.generation_config.eos_token_id) == {stop, *others}, "7 is an ordinary word"
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id not in (None, stop)
    assert tokenizer.bos_token_id == model.config.bos_token_id == model.generation_config.bos_token_id
    assert int(json.loads((folder / "config.json").read_text())["transformers_version"].split(".")[0]) >= 5
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w2 w1"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    told: Any = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer(rendered).input_ids == told["input_ids"]
    assert any(told["assistant_masks"])
    assert not all(told["assistant_masks"])
