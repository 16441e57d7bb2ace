from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from medsft.core.engine.formats.hf import open_hf, write_hf
from medsft.core.engine.formats.open import open_source
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder
from medsft.errors import MismatchError

IDS = torch.randint(96, (31,), generator=torch.Generator().manual_seed(1))


def random_model(config) -> Decoder:
    model = Decoder(config)
    model.init_weights(seed=4)
    return model


@torch.no_grad()
def logits(model: Decoder) -> torch.Tensor:
    return model.logits(model(IDS, PackedSequences.of([len(IDS)])))


@torch.no_grad()
def test_reads_what_transformers_wrote(variant, load, tmp_path):
    reference = variant.reference()
    reference.save_pretrained(tmp_path)
    model = load(open_source(tmp_path))
    torch.testing.assert_close(logits(model), reference(IDS[None]).logits[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_transformers_reads_what_we_wrote(variant, tmp_path):
    model = random_model(variant.config())
    write_hf(tmp_path / "out", variant.config(), model.named_parameters(), dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert reference.dtype == torch.float32
    assert reference.generation_config.eos_token_id == 2
    torch.testing.assert_close(logits(model), reference(IDS[None]).logits[0], atol=1e-4, rtol=0)
    assert open_hf(tmp_path / "out").config == variant.config()


def test_shards_have_an_index_and_hold_at_most_their_size(tiny, load, tmp_path):
    model = random_model(tiny.config())
    folder = tmp_path / "out"
    write_hf(folder, tiny.config(), model.named_parameters(), dtype=torch.bfloat16, max_shard_bytes=60_000)
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < 64_000 for file in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * tiny.config().num_parameters()
    assert open_hf(folder).dtype("model.norm.weight") == torch.bfloat16
    torch.testing.assert_close(
        dict(load(open_hf(folder)).named_parameters()), dict(model.bfloat16().float().named_parameters()), atol=0, rtol=0
    )
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("shards", [1, 2])
def test_reads_pytorch_model_bin(tiny, load, tmp_path, shards):
    reference = tiny.reference()
    reference.config.save_pretrained(tmp_path)
    state = reference.state_dict()
    names = list(state)
    parts = [names[i::shards] for i in range(shards)]
    if shards == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        files = [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
        for file, part in zip(files, parts, strict=True):
            torch.save({name: state[name] for name in part}, tmp_path / file)
        index = {"weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_source(tmp_path)
    assert torch.equal(source.read("lm_head.weight", (slice(3, 9),)), state["lm_head.weight"][3:9])
    torch.testing.assert_close(load(source).state_dict(), dict(state), atol=0, rtol=0)


def test_reads_only_the_slice(tiny, tmp_path):
    tiny.reference().save_pretrained(tmp_path)
    source = open_hf(tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    whole = source.read(name)
    assert source.shape(name) == tuple(whole.shape) == (64, 112)
    part = source.read(name, (slice(0, 64), slice(28, 56)))
    assert torch.equal(part, whole[:, 28:56])
    assert torch.equal(source.read(name, (slice(5, 7),)), whole[5:7])


def test_fingerprint_follows_the_content(tiny, tmp_path):
    config = tiny.config()
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = Decoder(config)
        model.init_weights(seed)
        write_hf(tmp_path / name, config, model.named_parameters(), dtype=torch.float32)
        prints.append(open_hf(tmp_path / name).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_several_ends_of_generation(tiny, tmp_path):
    model = random_model(tiny.config())
    write_hf(tmp_path / "out", tiny.config(), model.named_parameters(), dtype=torch.float32, eos_token_ids=[7, 2])
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert reference.generation_config.eos_token_id == [7, 2]


def test_incomplete_tensors_leave_no_folder(tiny, tmp_path):
    some = list(random_model(tiny.config()).named_parameters())[:-1]
    with pytest.raises(MismatchError, match=r"lm_head\.weight is missing"):
        write_hf(tmp_path / "out", tiny.config(), some, dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tiny, tmp_path):
    (tmp_path / "theirs").touch()
    with pytest.raises(MismatchError, match="exists already"):
        write_hf(tmp_path, tiny.config(), random_model(tiny.config()).named_parameters(), dtype=torch.float32)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_of_another_size_are_refused_by_name(tiny, tmp_path):
    tiny.reference().save_pretrained(tmp_path)
    edit_config(tmp_path, vocab_size=97)
    with pytest.raises(MismatchError, match=r"model\.embed_tokens\.weight is \[96, 64\], its config says \[97, 64\]"):
        open_source(tmp_path)


def test_a_missing_shard_is_refused_by_name(tiny, tmp_path):
    tiny.reference().save_pretrained(tmp_path, max_shard_size="100KB")
    next(tmp_path.glob("model-00002-of-*")).unlink()
    with pytest.raises(MismatchError, match="model-00002-of-"):
        open_source(tmp_path)


def test_a_damaged_file_is_refused_by_name(tiny, tmp_path):
    tiny.reference().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MismatchError, match=r"model\.safetensors: cut short: it has"):
        open_source(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(MismatchError, match="not a checkpoint of a known kind"):
        open_source(tmp_path)
    with pytest.raises(MismatchError, match="no such"):
        open_source(tmp_path / "nowhere")
