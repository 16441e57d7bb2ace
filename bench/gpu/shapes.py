"""Models of published sizes with random weights, a tokenizer of as many words, and rows for them.

The time of a step depends on sizes and lengths, and on numbers only in that zeros are multiplied faster: so files hold zeros,
which take no room on the disk, and a trainer's weights are made random on the device (`trained.fill`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from bench.sparse_weights import write_tensors
from medsft.core.models.config import ModelConfig, from_hf_config

_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
SMOLLM2_135M: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
SMALL = {
    **SMOLLM2_135M,
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""Small enough to train on a CPU beside the GPU."""
LLAMA_1B: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}
LLAMA_8B: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}
_TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 8}
_TINY_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
_FREE_ROWS = 8
"""Of the tables of tokens, for those that a template adds."""


def sized(shape: Mapping[str, Any], *, tiny: bool, **changes: Any) -> dict[str, Any]:
    """Return the values of a config.json with some changed; with `tiny` the sizes of tests."""
    return {**shape, **changes, **({**_TINY, **_TINY_HEADS} if tiny else {})}


def config_of(shape: Mapping[str, Any]) -> ModelConfig:
    """Return the model of a config.json."""
    return from_hf_config(shape, where="config.json")


def write_base(folder: Path, shape: Mapping[str, Any], *, dtype: str = "BF16") -> Path:
    """Write a base model of zeros, which takes no room on the disk, and a tokenizer of as many words as it has rows."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    weights = {name: (dtype, size) for name, size in config_of(shape).parameter_shapes()}
    write_tensors(folder / "model.safetensors", weights)
    write_tokenizer(folder, shape["vocab_size"])
    return folder


def write_random_base(folder: Path, shape: Mapping[str, Any]) -> Path:
    """Write a base model of random weights in fp32, as transformers makes and saves it, with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    write_tokenizer(folder, shape["vocab_size"])
    return folder


def write_tokenizer(folder: Path, rows: int) -> None:
    """Write a tokenizer whose tokens are words, for a model with so many rows in its tables."""
    tokens = ["<unk>", "system", "question", "answer", *words(rows)]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def words(rows: int) -> list[str]:
    """Return the words that such a tokenizer knows."""
    return [f"w{number}" for number in range(rows - _FREE_ROWS)]


def write_rows(path: Path, vocab_size: int, *, count: int, question: int, answer: int, seed: int = 0) -> Path:
    """Write `count` rows of random words: so many in each question and answer."""
    draw, known = random.Random(seed), words(vocab_size)

    def text(number: int) -> str:
        return " ".join(draw.choices(known, k=number))

    rows = ({"prompt": text(question), "gold": text(answer)} for _ in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_uneven_rows(path: Path, vocab_size: int, *, count: int, longest: int, seed: int = 0) -> Path:
    """Write rows of very uneven lengths whose answer begins as the question: something to learn in a few iterations."""
    draw, known = random.Random(seed), words(vocab_size)[:80]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            chosen = draw.choices(known, k=min(longest, 1 + int(draw.expovariate(4 / longest))))
            file.write(json.dumps({"prompt": " ".join(chosen), "gold": " ".join(chosen[:8])}) + "\n")
    return path
