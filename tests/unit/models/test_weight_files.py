"""A base model that cannot be trained as it is says so before anything starts: by name, with what to do, and without torch."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from medsft.core.models.inspect import inspect_base
from medsft.core.models.tensors import EMBEDDING, OUTPUT
from medsft.errors import MismatchError

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3}


def write(folder: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A model of zeros; `tensors` are added to its own, or taken away where their value is None."""
    tiny.write_base(folder, weights=False, tokenizer=False, **SIZES, **changes)
    held = {**tiny.describe_weights(folder), **(tensors or {})} if tensors is not None else tiny.describe_weights(folder)
    tiny.write_tensors(folder / "model.safetensors", {name: held[name] for name in held if held[name] is not None})
    return folder


def poke(path: Path, tensor: str, content: bytes) -> None:
    """Put bytes at the beginning of a tensor."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    start = 8 + length + json.loads(raw[8 : 8 + length])[tensor]["data_offsets"][0]
    path.write_bytes(raw[:start] + content + raw[start + len(content) :])


BIAS = "model.layers.1.self_attn.q_proj.bias"
LAYER = "model.layers.1."


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.3.mlp.up_proj.weight": ("BF16", (112, 64))}, "hold layer 3 .* num_hidden_layers = 3"),
        ({LAYER + "self_attn.q_norm.weight": ("BF16", (16,))}, r"no place for model\.layers\.1\.self_attn\.q_norm\.weight"),
        ({LAYER + "mlp.up_proj.lora_A.weight": ("BF16", (4, 64))}, "no place for .*lora_A"),
        ({"model.layers.0.self_attn.q_proj.weight": ("BF16", (64, 60))}, r"is \[64, 60\], its config says \[64, 64\]"),
        ({"model.norm.weight": None}, r"model\.norm\.weight is missing"),
        ({EMBEDDING: ("I8", (96, 64))}, "holds weights as I8: a quantized model"),
        ({EMBEDDING: ("F8_E4M3", (96, 64))}, "holds weights as F8_E4M3: a quantized model"),
        ({LAYER + "mlp.up_proj.qweight": ("I32", (14, 64))}, "quantized model: it holds .*qweight"),
        ({LAYER + "mlp.up_proj.weight.absmax": ("F32", (14,))}, "quantized model: it holds .*absmax"),
        ({LAYER + "mlp.up_proj.weight_scale_inv": ("F32", (1, 1))}, "quantized model: it holds .*weight_scale_inv"),
    ],
)
def test_tensors_that_are_not_those_of_the_model(tmp_path, tensors, message):
    with pytest.raises(MismatchError, match=message):
        inspect_base(write(tmp_path / "m", tensors))


def test_a_bias_is_refused_unless_it_is_zero(tmp_path):
    """A "llamafied" Qwen: without its biases it is another model."""
    folder = write(tmp_path / "m", {BIAS: ("BF16", (64,))})
    assert inspect_base(folder).warnings == ()
    poke(folder / "model.safetensors", BIAS, b"\x80\x3f")
    with pytest.raises(MismatchError, match=r"no place for model\.layers\.1\.self_attn\.q_proj\.bias") as caught:
        inspect_base(folder)
    assert "model_type" in caught.value.hint


def test_what_changes_nothing_passes_and_what_is_not_used_is_named(tmp_path):
    harmless = {
        LAYER + "self_attn.rotary_emb.inv_freq": ("F32", (8,)),
        LAYER + "self_attn.masked_bias": ("F32", ()),
        LAYER + "self_attn.bias": ("U8", (1, 1, 32, 32)),
    }
    assert inspect_base(write(tmp_path / "m", harmless)).warnings == ()
    [warning] = inspect_base(write(tmp_path / "m", {"v_head.summary.weight": ("F32", (1, 64))})).warnings
    assert "not used: v_head.summary.weight" in warning


def test_a_second_table_of_a_tied_model_must_be_the_first(tmp_path):
    folder = write(tmp_path / "m", {OUTPUT: ("BF16", (96, 64))}, tie_word_embeddings=True)
    assert inspect_base(folder).warnings == ()
    poke(folder / "model.safetensors", OUTPUT, b"\x80\x3f")
    with pytest.raises(MismatchError, match="tie_word_embeddings") as caught:
        inspect_base(folder)
    assert "false" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"a quantized model \(quantization_config: gptq\)"),
        ({"quantization_config": {"load_in_4bit": True}}, r"a quantized model .*bitsandbytes"),
        ({"quantization_config": {"bits": 4}}, "a quantized model .*not named"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "a quantized model .*compressed-tensors"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "`LlamaForSequenceClassification` is a classifier"),
        ({"architectures": ["LlamaModel"]}, "`LlamaModel` is a model without its output layer"),
        ({"architectures": ["LlamaForRewardModel"]}, "a reward model"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "`t5` is not supported: it is an encoder with a decoder"),
        ({"model_type": "bert"}, "`bert` is not supported: it is an encoder"),
        ({"model_type": "qwen2_vl", "vision_config": {"depth": 2}}, "`qwen2_vl` is not supported: it reads more than text"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "`mixtral` is not supported: it is a mixture of experts"),
        ({"model_type": "gemma"}, "`gemma` is not supported"),
        ({"attention_bias": True}, "attention_bias on a llama model"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 2},
            "window",
        ),
    ],
)
def test_another_kind_of_model(tmp_path, changes, message):
    write(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(tiny.LLAMA | SIZES | changes))
    with pytest.raises(MismatchError, match=message) as caught:
        inspect_base(tmp_path / "m")
    assert "config.json" in str(caught.value)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def head(entry: Any) -> bytes:
    text = json.dumps({"x": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (halve, "cut short: it has"),
        (lambda path: os.truncate(path, 5), "cut short, or no safetensors"),
        (lambda path: os.truncate(path, 0), "cut short, or no safetensors"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "damaged: its tensors are not"),
        (rewrite(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"), "a pointer of Git LFS"),
        (rewrite(b"\xff" * 200), "cut short, or no safetensors"),
        (rewrite(b"<html>404 Not Found</html>" * 9), "cut short, or no safetensors"),
        (rewrite((50).to_bytes(8, "little") + b"[" * 50), "not valid JSON"),
        (rewrite((100_000).to_bytes(8, "little") + b"[" * 100_000), "not valid JSON"),
        (rewrite((2).to_bytes(8, "little") + b"[]"), "must hold a JSON object"),
        (rewrite(head(3)), "without type, shape and place"),
        (rewrite(head({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]})), "odd numbers"),
        (rewrite(head({"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 4]})), "disagree"),
        (rewrite(head({"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 70]})), "disagree"),
        (rewrite(head({"dtype": "F4", "shape": [1], "data_offsets": [0, 1 << 70]})), "cut short"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    file = write(tmp_path / "m") / "model.safetensors"
    damage(file)
    with pytest.raises(MismatchError, match=message) as caught:
        inspect_base(tmp_path / "m")
    assert str(file) in str(caught.value)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}')
    (folder / "adapter_model.safetensors").touch()


def only(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).touch() for name in names]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (adapter, "an adapter .* it belongs to meta-llama/Llama-3.1-8B.*merge"),
        (lambda folder: adapter(tiny.write_base(folder, weights=False)), "an adapter"),
        (only("tekken.json", "params.json", "consolidated.safetensors"), "Mistral's own format"),
        (only("params.json", "consolidated.00.pth", "tokenizer.model"), "own format"),
        (only("tekken.json"), "Mistral's own format"),
        (only("tokenizer.json"), "a tokenizer without a model"),
        (only("model.safetensors", "tokenizer.json"), "weights without a config.json"),
        (only("a.gguf", "b.gguf"), "2 GGUF files; name one"),
        (lambda folder: (folder / "models--x--y").mkdir(), "cache of several models"),
        (lambda folder: write(folder) and (folder / "model.safetensors").rename(folder / "pytorch_model.h5"), "no weights"),
        (
            lambda folder: write(folder) and (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
            "not the index model.safetensors.index.json",
        ),
        (lambda folder: write(folder) and (folder / "model.safetensors").rename(folder / "tf_model.h5"), "TensorFlow"),
        (
            lambda folder: write(folder) and (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin",
        ),
    ],
)
def test_a_folder_that_people_take_for_a_model(tmp_path, make, message):
    folder = tmp_path / "m"
    folder.mkdir()
    make(folder)
    with pytest.raises(MismatchError, match=f"(?s){message}"):
        inspect_base(folder)


def test_an_old_pickle_is_named(tmp_path):
    write(tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    (tmp_path / "m/pytorch_model.bin").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(MismatchError, match=r"torch before 1\.6"):
        inspect_base(tmp_path / "m")


def test_a_folder_of_the_hub_s_cache_is_its_only_snapshot(tmp_path):
    cache = tmp_path / "models--HuggingFaceTB--SmolLM2-135M"
    first = write(cache / "snapshots" / "abc")
    for asked in (cache, cache / "snapshots", first):
        assert inspect_base(asked).path == first
    write(cache / "snapshots" / "def")
    with pytest.raises(MismatchError, match="2 snapshots: abc, def"):
        inspect_base(cache)


def test_a_gguf_file_beside_a_config_is_the_model(tmp_path):
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(MismatchError, match=r"model\.gguf: cannot be read as GGUF"):
        inspect_base(folder)
