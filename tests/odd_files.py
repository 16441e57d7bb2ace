"""Writes files of other programs byte by byte, without these programs, so that tests can write them wrongly too.

`refused` says what is asked of each such file.
"""

from __future__ import annotations

import struct
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.errors import MismatchError


@dataclass(frozen=True)
class Tensor:
    """A float32 tensor in a pickle; its numbers are not in the file."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


def pickled(value: Any) -> bytes:
    """The pickle that torch.save would put into `data.pkl`, without sharing."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case Raw():
            return value.opcodes
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            length = value.bit_length() // 8 + 1
            return b"\x8b" + struct.pack("<i", length) + value.to_bytes(length, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
        case Namespace():
            return b"cargparse\nNamespace\n)\x81" + _opcodes(vars(value)) + b"b"
        case Tensor():
            storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
            rest = _opcodes(0) + _opcodes(value.shape) + _opcodes((1,) * len(value.shape))
            return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"\x89Nt" + b"R"
    raise TypeError(value)


def write_pt(path: Path, payload: bytes) -> Path:
    """A zip as torch.save writes it, with this pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    return path


ARGS: Mapping[str, Any] = {
    "num_layers": 3,
    "encoder_num_layers": 3,
    "hidden_size": 64,
    "ffn_hidden_size": 112,
    "num_attention_heads": 4,
    "num_attention_heads_kv": 2,
    "kv_channels": 16,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling_factor": 1.0,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "sliding_window_size": None,
    "model_name": "llama2",
    "tokenizer_type": "SentencePieceTokenizer",
    "vocab_file": "tokenizer.model",
    "use_rms_norm": True,
    "glu_activation": "swiglu",
    "position_embedding_type": "rotary",
    "tie_embed_logits": False,
    "use_bias": False,
}


def rank_content(**changes: Any) -> dict[str, Any]:
    """What rank 0 of a Megatron-LLM checkpoint holds, as far as it is looked at without torch; `changes` are of its args."""
    language = {"embedding": {"word_embeddings": {"weight": Tensor((128, 64))}}, "lm_head": Tensor((128, 64))}
    args = Namespace(**{**ARGS, **changes})
    return {"args": args, "checkpoint_version": 3.0, "iteration": 5, "model": {"language_model": language}}


def write_megatron(root: Path, content: Any) -> Path:
    """A folder with the file of one rank, and return that file."""
    file = write_pt(root / "release/mp_rank_00/model_optim_rng.pt", pickled(content))
    (root / "latest_checkpointed_iteration.txt").write_text("release")
    return file


def gguf_text(text: str) -> bytes:
    """A string of a GGUF head."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_fields() -> dict[str, tuple[int, bytes]]:
    """(type, content) of each field of a small Llama."""
    whole = {
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.bos_token_id": 1,
    }
    tokens = b"".join(map(gguf_text, ("<s>", "a", "b")))
    return {
        "general.architecture": (8, gguf_text("llama")),
        **{name: (4, struct.pack("<I", value)) for name, value in whole.items()},
        "llama.attention.layer_norm_rms_epsilon": (6, struct.pack("<f", 1e-5)),
        "tokenizer.ggml.tokens": (9, struct.pack("<IQ", 8, 3) + tokens),
        "tokenizer.ggml.scores": (9, struct.pack("<IQ", 6, 3) + bytes(12)),
    }


def gguf_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, as torch orders them, of the tensors of that Llama."""
    yield from (("token_embd.weight", (96, 32)), ("output_norm.weight", (32,)), ("output.weight", (96, 32)))
    for layer in range(2):
        for name, shape in {
            "attn_norm": (32,),
            "ffn_norm": (32,),
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (48, 32),
            "ffn_up": (48, 32),
            "ffn_down": (32, 48),
        }.items():
            yield f"blk.{layer}.{name}.weight", shape


def gguf_head(
    fields: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """The head of a GGUF file; `counts` are the numbers of tensors and fields that it claims."""
    fields = gguf_fields() if fields is None else fields
    described = dict(gguf_tensors()) if tensors is None else tensors
    content = b"".join(gguf_text(key) + struct.pack("<I", kind) + value for key, (kind, value) in fields.items())
    for name, shape in described.items():
        content += gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(described), len(fields)))) + content


def mutations(content: bytes, *, every: int = 1) -> list[bytes]:
    """The content with one byte changed, at each place, and cut at each place."""
    changed = [
        content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
        for at in range(0, len(content), every)
        for flip in (1, 255)
    ]
    return changed + [content[:at] for at in range(0, len(content), every)]


def refused(work: Any, path: Path) -> None:
    """The call ends with a result, or with one clear message that has the path, steers no terminal, and is short."""
    message = str(path)
    try:
        work()
    except MismatchError as error:
        message = str(error)
    assert str(path) in message
    assert message.replace("\n", "").isprintable()
    assert len(message) < 1500
