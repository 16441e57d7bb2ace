"""GGUF files with odd content: each is one clear message with its path."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import odd_files
import pytest
from odd_files import gguf_fields, gguf_head, gguf_text, mutations, refused

from medsft.core.models.gguf import config_of
from medsft.core.models.inspect import inspect_base
from medsft.errors import MismatchError

pytestmark = pytest.mark.timeout(60)
BIG = struct.pack("<Q", 1 << 62)


def gguf(path: Path, head: bytes) -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 200_000)
    return path


def test_a_gguf_file_as_it_should_be(tmp_path):
    config = config_of(gguf(tmp_path / "m.gguf", gguf_head()))
    assert (config.vocab_size, config.num_layers, config.num_kv_heads, config.norm_eps) == (96, 2, 2, 1e-5)


def test_a_gguf_head_with_any_byte_changed(tmp_path):
    path = tmp_path / "m.gguf"
    for content in mutations(gguf_head(), every=3):
        gguf(path, content)
        refused(lambda: inspect_base(path), path)


@pytest.mark.parametrize("name", gguf_fields())
def test_odd_fields_of_a_gguf_file(tmp_path, name):
    odd = [
        (4, struct.pack("<I", 0)),
        (4, b"\xff\xff\xff\xff"),
        (5, struct.pack("<i", -5)),
        (6, struct.pack("<f", math.nan)),
        (6, struct.pack("<f", math.inf)),
        (7, b"\x02"),
        (8, gguf_text("x\x1b[2J" * 50)),
        (8, BIG),
        (9, struct.pack("<IQ", 4, 2) + bytes(8)),
        (9, struct.pack("<I", 8) + BIG),
        (9, struct.pack("<I", 4) + BIG),
        (9, struct.pack("<IQIQ", 9, 1, 9, 1)),
        (10, BIG),
        (12, struct.pack("<d", 1e300)),
        (99, b""),
    ]
    for field in odd:
        path = gguf(tmp_path / "m.gguf", gguf_head({**gguf_fields(), name: field}))
        refused(lambda path=path: inspect_base(path), path)
    fields = gguf_fields()
    del fields[name]
    path = gguf(tmp_path / "m.gguf", gguf_head(fields))
    refused(lambda: inspect_base(path), path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (gguf_head(counts=(1 << 62, 3)), "100,000 are the most"),
        (gguf_head(counts=(3, 1 << 62)), "10,000 are the most"),
        (gguf_head(tensors={"token_embd.weight": (1 << 40, 1 << 40)}), "behind its end"),
        (gguf_head(tensors={**dict(odd_files.gguf_tensors()), "blk.0.attn_q.bias": (32,)}), "no place for .*q_proj.bias"),
        (gguf_head(tensors={**dict(odd_files.gguf_tensors()), "blk.5.ffn_up.weight": (48, 32)}), "hold layer 5"),
        (gguf_head(tensors={"token_embd.weight": (96, 32)}), "is missing"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "the other order"),
        (b"GGML" + bytes(100), "does not begin as one"),
    ],
)
def test_a_gguf_file_that_claims_what_no_model_has(tmp_path, head, message):
    with pytest.raises(MismatchError, match=message):
        config_of(gguf(tmp_path / "m.gguf", head))
