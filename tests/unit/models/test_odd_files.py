"""Files of base models with odd content: each is one clear message with its path, never a bug, never for ever, and no torch.

The values are all there are of their kind, not drawn: what fails once fails again.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import odd_files
import pytest
import tiny
from odd_files import Raw, Tensor, mutations, rank_content, refused, write_megatron, write_pt

from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.tokenizer_config import read_tokenizer_config
from medsft.core.models import pickles
from medsft.core.models.config import read_hf_config
from medsft.core.models.inspect import inspect_base
from medsft.core.models.megatron import open_folder
from medsft.core.models.safetensors import read_header
from medsft.core.models.weight_files import find_weight_files
from medsft.errors import DataError, MedsftError, MismatchError

pytestmark = pytest.mark.timeout(60)

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "rope_parameters": None,
    "quantization_config": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEEDED = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NUMBERS = ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings", *NEEDED[1:])
NEVER_NUMBERS: tuple[Any, ...] = (
    "64",
    "",
    "x" * 100_000,
    -1,
    math.nan,
    math.inf,
    -math.inf,
    10**30,
    10**400,
    True,
    [],
    [64],
    {},
)
ODD: tuple[Any, ...] = (*NEVER_NUMBERS, None, 0, 1.5, 64.0, 1e300, 5e-324, {"a": {"b": 1}}, [[[]]], "\x1b[2J", "[/x]", "\ud800")


def write_config(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize("field", [*RAW, "sliding_window", "use_sliding_window", "max_window_layers", "layer_types"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_odd_values_in_a_config(tmp_path, field, family):
    config = {**RAW, "model_type": family, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    for value in ODD:
        write_config(tmp_path, json.dumps({**config, field: value}))
        refused(lambda: read_hf_config(tmp_path), tmp_path / "config.json")
    for value in NEVER_NUMBERS if field in NUMBERS else ():
        write_config(tmp_path, json.dumps({**config, field: value}))
        with pytest.raises(MismatchError, match=f"`{field}` is "):
            read_hf_config(tmp_path)


@pytest.mark.parametrize("field", NEEDED)
def test_what_is_missing_or_null_is_named(tmp_path, field):
    write_config(tmp_path, json.dumps({name: value for name, value in RAW.items() if name != field}))
    with pytest.raises(MismatchError, match=f"`{field}` is missing"):
        read_hf_config(tmp_path)
    write_config(tmp_path, json.dumps({**RAW, field: None}))
    with pytest.raises(MismatchError, match=f"`{field}` is null"):
        read_hf_config(tmp_path)


@pytest.mark.parametrize("field", ["rope_type", "type", "factor", "low_freq_factor", "original_max_position_embeddings"])
def test_odd_values_in_a_scaling(tmp_path, field):
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for value in ODD:
        write_config(tmp_path, json.dumps({**RAW, "rope_scaling": {**llama3, field: value}}))
        refused(lambda: read_hf_config(tmp_path), tmp_path / "config.json")
    for name in ("factor", "low_freq_factor"):
        write_config(tmp_path, json.dumps({**RAW, "rope_scaling": {k: v for k, v in llama3.items() if k != name}}))
        with pytest.raises(MismatchError, match=f"`{name}` is missing"):
            read_hf_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 key/value heads"),
        ({"head_dim": 15}, "heads of 15 features"),
        ({"num_hidden_layers": 10_000_000}, "from 1 to 2,000"),
        ({"vocab_size": 1 << 40}, "from 1 to 4,000,000"),
        ({"num_attention_heads": 1_000_000}, "from 1 to 4,096"),
    ],
)
def test_sizes_that_no_model_has(tmp_path, changes, message):
    with pytest.raises(MismatchError, match=message):
        read_hf_config(write_config(tmp_path, json.dumps(RAW | changes)))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b"{", b'"x"', b"\xff\xfe{\x00}\x00", bytes(1000), b"<html>"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"vocab_size": ' + b"9" * 9000),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ],
)
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MismatchError, match=r"config\.json"):
        inspect_base(tmp_path)


def test_a_folder_or_a_monster_for_a_config(tmp_path):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a/config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MismatchError, match="at most"):
        read_hf_config(tmp_path / "a")
    (tmp_path / "b/config.json").mkdir(parents=True)
    with pytest.raises(MismatchError, match="a folder, not a file"):
        read_hf_config(tmp_path / "b")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_pipe_for_a_file_is_never_waited_for(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(MedsftError, match=f"{name}.* a pipe or a device, not a file"):
        (read_tokenizer_config if name == "tokenizer_config.json" else read_hf_config)(tmp_path)


def test_a_damaged_generation_config_is_named(tmp_path):
    """Its end tokens would be missing from the export without a word."""
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    for content in ("{", "[]", '{"eos_token_id": "x"}', "version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(MismatchError, match=r"generation_config\.json"):
            read_hf_config(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
def test_a_tokenizer_that_git_did_not_fetch(tmp_path, name):
    tiny.write_tokenizer(tmp_path)
    file = tmp_path / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match="pointer of Git LFS"):
        open_tokenizer(file if name != "tokenizer_config.json" else tmp_path / "tokenizer.json", template="chatml")


def test_a_folder_for_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(MismatchError, match=r"model\.safetensors is a folder, not a file"):
        find_weight_files(tmp_path)


def test_odd_indexes(tmp_path):
    write_config(tmp_path, json.dumps(RAW))
    index = tmp_path / "model.safetensors.index.json"
    names = (None, 3, "../up.safetensors", "/etc/passwd", "a\0b", "", ".", "n" * 5000, "\ud800", "missing.safetensors")
    for value in (*ODD, *({"x": name} for name in names)):
        index.write_text(json.dumps({"weight_map": value}))
        with pytest.raises(MismatchError) as caught:
            inspect_base(tmp_path)
        assert str(tmp_path) in str(caught.value)
    for text in ("", "[]", "{}", "[" * 100_000):
        index.write_text(text)
        with pytest.raises(MismatchError, match=r"index\.json"):
            inspect_base(tmp_path)


def test_a_safetensors_head_with_any_byte_changed(tmp_path):
    tensors = {"a.weight": ("F32", (2, 3)), "b": ("BF16", (4,))}
    whole = tiny.write_tensors(tmp_path / "model.safetensors", tensors).read_bytes()
    for number, content in enumerate(mutations(whole)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        refused(lambda path=path: read_header(path), path)
        path.unlink()


@pytest.mark.parametrize("field", odd_files.ARGS)
def test_odd_arguments_of_megatron(tmp_path, field):
    for value in (*ODD, Tensor((2,)), Namespace(a=1), ((),) * 3):
        file = write_megatron(tmp_path / "m", rank_content(**{field: value}))
        refused(lambda: inspect_base(tmp_path / "m"), tmp_path / "m")
        file.unlink()


def test_a_megatron_folder_as_it_should_be(tmp_path):
    write_megatron(tmp_path / "m", rank_content())
    base = inspect_base(tmp_path / "m")
    assert (base.kind, base.config and base.config.vocab_size) == ("megatron", 128)


@pytest.mark.parametrize(
    "content",
    [
        *({**rank_content(), "checkpoint_version": value} for value in ODD),
        *({**rank_content(), "args": value} for value in ODD),
        *({**rank_content(), "model": value} for value in ODD),
        *({**rank_content(), "model": {"language_model": {"embedding": value}}} for value in ODD),
        *({**rank_content(), "model": {"language_model": {"embedding": {"word_embeddings": value}}}} for value in ODD),
        *({**rank_content(), "model": {"language_model": {"embedding": {"word_embeddings": {"weight": v}}}}} for v in ODD),
        *ODD,
        Tensor(()),
    ],
)
def test_odd_contents_of_a_rank(tmp_path, content):
    write_megatron(tmp_path, content)
    refused(lambda: inspect_base(tmp_path), tmp_path)


def test_a_rank_s_pickle_with_any_byte_changed(tmp_path):
    payload = odd_files.pickled(rank_content())
    for content in mutations(payload, every=7):
        file = write_pt(tmp_path / "m.pt", content)
        refused(lambda file=file: pickles.look(file), file)


@pytest.mark.parametrize("word", ["", "0", "-1", "release2", "٣", "9" * 5000, "1e3", "\x1b[2J", "12 13"])
def test_odd_trackers(tmp_path, word):
    write_megatron(tmp_path, rank_content())
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(word)
    with pytest.raises(MismatchError, match=r"latest_checkpointed_iteration\.txt: says"):
        open_folder(tmp_path)


def test_more_ranks_than_anybody_has(tmp_path):
    write_megatron(tmp_path, rank_content(tensor_model_parallel_size=10**9, pipeline_model_parallel_size=10**9))
    with pytest.raises(MismatchError, match="tensor_model_parallel_size"):
        open_folder(tmp_path)


def shared(depth: int) -> Raw:
    """A tuple of two of the same tuple of two of ..., as a key: its hash takes 2^depth steps."""
    return Raw(b")q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(depth)))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (odd_files.pickled(Raw(b"}" + shared(60).opcodes + b"Ns")), "a key of a dictionary"),
        (odd_files.pickled(Raw(b"}(" + shared(60).opcodes + b"Nu")), "a key of a dictionary"),
        (odd_files.pickled(Raw(b"(" + shared(60).opcodes + b"Nd")), "a key of a dictionary"),
        (odd_files.pickled(Raw(b"]" + b"q" + b"\x00" + b"r\xff\xff\xff\x7f")), "no result"),
        (odd_files.pickled(Raw(b"\x96" + struct.pack("<Q", 1 << 40))), "a part of pickle"),
        (odd_files.pickled(Raw(b"\x8e" + struct.pack("<Q", 1 << 40))), "damaged"),
        (odd_files.pickled(Raw(b"]" * 100_000 + b"a" * 99_999)), "no result"),
        (odd_files.pickled(Raw(b"cargparse\nNamespace\nN}X\x01\x00\x00\x00aNs\x86b")), "no object of its own"),
        (odd_files.pickled(Raw(b"ccollections\nOrderedDict\n(]tR")), "not filled as torch does"),
        (odd_files.pickled(Raw(b"cposix\nsystem\n)R")), "it asks for `posix.system`"),
    ],
)
def test_a_pickle_that_would_take_all_memory_or_time(tmp_path, payload, message):
    file = write_pt(tmp_path / "m.pt", payload)
    if message == "no result":  # harmless: it is read, and is no checkpoint
        pickles.look(file)
        return
    with pytest.raises(MismatchError, match=message):
        pickles.look(file)


def test_a_zip_that_unpacks_to_more_than_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(80 * 2**20))
    with pytest.raises(MismatchError, match="more than 67,108,864 bytes"):
        pickles.look(tmp_path / "bomb.pt")


def test_a_zip_with_too_many_files(tmp_path):
    """The count stands at the end of the file; it is believed before a list is made."""
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0x7FFFFFFF, 0, 0)
    (tmp_path / "many.pt").write_bytes(b"PK\x03\x04" + bytes(1000) + end)
    with pytest.raises(MismatchError, match="more files than any checkpoint has"):
        pickles.look(tmp_path / "many.pt")
