"""The base model in a plan: the tokenizer that it records is the one that its sets are tokenized with."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import tiny

from medsft.core.config.run_config import RunConfig
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.models.inspect import inspect_base
from medsft.core.planning.base import plan_base, sampled_fingerprint
from medsft.core.settings import CheckpointEntry, Settings
from medsft.core.workflow import spec_for


@pytest.mark.parametrize(
    ("compat", "kind", "rows"), [("none", "tokenizer.json", 50), ("megatron-llm", "tokenizer.model", 32_000)]
)
def test_a_folder_with_two_tokenizers(tmp_path: Path, compat: str, kind: str, rows: int) -> None:
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "num_attention_heads": 4, "vocab_size": rows}))
    tiny.write_weights(tmp_path)
    tiny.write_tokenizer(tmp_path)
    shutil.copy(str(files("mistral_common") / "data" / "tokenizer.model.v1"), tmp_path / "tokenizer.model")
    config = RunConfig(checkpoint="base", size=1, run_name="r", compat=compat)
    entry = CheckpointEntry(name="base", size=1, path=tmp_path)
    planned, _ = plan_base(config, entry, inspect_base(tmp_path))
    used = spec_for(config, Settings(checkpoints={("base", 1): entry})).open_tokenizer().tokenizer
    exported = open_tokenizer(Path(planned.tokenizer)).tokenizer
    assert used.kind == exported.kind == kind
    assert used.vocab_size == exported.vocab_size == planned.model.vocab_size


def test_a_link_to_a_model_has_the_fingerprint_of_the_model(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 100)
    (tmp_path / "link.gguf").symlink_to("model.gguf")
    assert sampled_fingerprint(tmp_path / "link.gguf") == sampled_fingerprint(tmp_path / "model.gguf")
