"""Megatron-LLM folders against formulas that share no code with the package, and against transformers."""

from __future__ import annotations

import zipfile
from typing import Any

import megatron_formulas as formulas
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medsft.core.engine.formats.hf import open_hf, write_hf
from medsft.core.engine.formats.megatron import open_megatron, write_megatron
from medsft.core.engine.formats.megatron.layout import padded_rows
from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.models.config import ModelConfig
from medsft.errors import MismatchError

SIZES = formulas.SIZES

CONFIG = ModelConfig(
    family="llama",
    **SIZES,
    norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=64,
    tie_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (2, 4)]


@pytest.fixture(scope="module")
def weights():
    return formulas.random_weights(SIZES)


def assert_same(source, weights):
    assert set(source.names()) == set(weights)
    for name, weight in weights.items():
        assert source.dtype(name) == weight.dtype
        assert source.shape(name) == tuple(weight.shape)
        assert torch.equal(source.read(name), weight), name


@pytest.mark.parametrize("style", ["trainer", "converter"])
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_reader_against_the_formulas(tp, pp, style, weights, tmp_path):
    formulas.write_folder(tmp_path, weights, SIZES, tp=tp, pp=pp, style=style)
    source = open_megatron(tmp_path)
    assert (source.folder.tp, source.folder.pp, source.folder.iteration) == (tp, pp, None)
    assert source.config == CONFIG
    assert_same(source, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_writer_against_the_formulas(tp, pp, dtype, weights, tmp_path):
    cast = {name: weight.to(dtype) for name, weight in weights.items()}
    folder = write_megatron(
        tmp_path / "ours", formulas.InMemory(weights, CONFIG), tp=tp, pp=pp, dtype=dtype, iteration=800, vocab_divisible_by=16
    )
    theirs = formulas.write_folder(tmp_path / "theirs", cast, SIZES, tp=tp, pp=pp, iteration=800)
    for path in sorted(theirs.glob("*/*.pt")):
        mine = folder / path.relative_to(theirs)
        ours, expected = (torch.load(file, weights_only=False)["model"]["language_model"] for file in (mine, path))
        assert set(ours) == set(expected)
        torch.testing.assert_close(ours["encoder"], dict(expected["encoder"]), atol=0, rtol=0)
        assert torch.equal(ours.get("lm_head", torch.empty(0)), expected.get("lm_head", torch.empty(0)))
        if "embedding" in expected:
            table = expected["embedding"]["word_embeddings"]["weight"]
            assert torch.equal(ours["embedding"]["word_embeddings"]["weight"], table)
    assert (tmp_path / "ours/latest_checkpointed_iteration.txt").read_text() == "800"


@pytest.mark.parametrize(("tp", "pp"), [*LAYOUTS, (4, 1), (4, 2), (4, 4)])
def test_round_trip_is_bit_identical(tp, pp, tmp_path):
    sizes = {**SIZES, "num_kv_heads": 4, "vocab_size": 101}
    config = ModelConfig(**{**{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}, **sizes})
    weights = formulas.random_weights(sizes, dtype=torch.bfloat16)
    write_hf(tmp_path / "hf", config, weights.items(), dtype=torch.bfloat16)
    first = open_hf(tmp_path / "hf")
    write_megatron(tmp_path / "mega", first, tp=tp, pp=pp, dtype=torch.bfloat16)
    back = open_megatron(tmp_path / "mega")
    assert back.folder.padded_vocab_size == 128 * tp
    assert back.config == config
    assert_same(back, weights)
    write_megatron(tmp_path / "other", back, tp=1, pp=1, dtype=torch.bfloat16)
    assert_same(open_megatron(tmp_path / "other"), weights)


def test_every_record_has_its_checksum(weights, tmp_path):
    folder = write_megatron(tmp_path / "m", formulas.InMemory(weights, CONFIG), tp=2, pp=2, dtype=torch.bfloat16)
    for path in folder.glob("*/*.pt"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        content = torch.load(path, weights_only=False)
        torch.save(content, tmp_path / "again.pt")
        assert abs(path.stat().st_size - (tmp_path / "again.pt").stat().st_size) < 4096


def test_reads_only_the_rows_asked_for(weights, tmp_path):
    formulas.write_folder(tmp_path, weights, SIZES, tp=2, pp=2)
    source = open_megatron(tmp_path)
    for name, part in [
        ("model.embed_tokens.weight", (slice(60, 70),)),
        ("model.layers.3.self_attn.q_proj.weight", (slice(8, 40), slice(3, 9))),
        ("model.layers.1.self_attn.o_proj.weight", (slice(5, 9), slice(20, 44))),
        ("model.layers.2.mlp.down_proj.weight", (slice(None), slice(50, 60))),
        ("model.layers.2.mlp.gate_proj.weight", (slice(50, 60),)),
        ("model.norm.weight", (slice(3, 5),)),
    ]:
        assert torch.equal(source.read(name, part), weights[name][part])


@torch.no_grad()
def test_logits_are_those_of_transformers(load, tmp_path):
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
        )
    ).eval()
    formulas.write_folder(tmp_path / "m", dict(reference.state_dict()), SIZES, tp=2, pp=2, iteration=4)
    model = load(open_megatron(tmp_path / "m"))
    ids = torch.arange(3, 43) % 128
    ours = model.logits(model(ids, PackedSequences.of([len(ids)])))
    torch.testing.assert_close(ours, reference(ids[None]).logits[0], atol=1e-5, rtol=1e-4)


def test_virtual_pipeline_and_distributed_optimizer_folders(weights, tmp_path):
    folder = formulas.write_folder(
        tmp_path, weights, SIZES, tp=2, pp=2, virtual=2, iteration=7, file_name="model_rng.pt", style="trainer"
    )
    for rank in range(2):  # optimizer shards, whose names look like those of pipeline ranks
        shard = folder / f"mp_rank_0{rank}_000_000"
        shard.mkdir()
        torch.save({"optimizer": torch.zeros(3)}, shard / "optim.pt")
    assert_same(open_megatron(tmp_path), weights)


def test_trainer_files_with_enums_optimizer_and_random_states(weights, tmp_path):
    master: Any = torch.ones(4)
    master.tensor_model_parallel = True  # such attributes change how torch pickles a tensor
    extra = {
        "rng_state": [{"np_rng_state": np.random.RandomState(1).get_state(), "torch_rng_state": torch.get_rng_state()}],
        "optimizer": {"optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}, "fp32_from_fp16_params": [[master]]},
        "opt_param_scheduler": {"num_steps": 64},
    }
    with formulas.MegatronEnums() as enums:
        formulas.write_folder(
            tmp_path,
            weights,
            SIZES,
            iteration=4,
            extra=extra,
            position_embedding_type=enums.PositionEmbeddingType.rotary,
            model_type=enums.ModelType.encoder_or_decoder,
        )
    source = open_megatron(tmp_path)
    assert source.folder.args["position_embedding_type"] == "rotary"
    assert source.folder.args["params_dtype"] == "float32"
    assert_same(source, weights)


def test_files_of_numpy_1_are_read(weights, tmp_path):
    folder = formulas.write_folder(tmp_path / "new", weights, SIZES, extra={"rng": np.random.RandomState(1).get_state()})
    path = folder / "mp_rank_00/model_optim_rng.pt"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    old, new = b"numpy._core.multiarray", b"numpy.core.multiarray"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    assert old in records["model_optim_rng/data.pkl"]
    assert_same(open_megatron(tmp_path / "new"), weights)


def test_padding_rows_can_be_cut(weights, tmp_path):
    formulas.write_folder(tmp_path, weights, SIZES, tp=2)
    source = open_megatron(tmp_path, true_vocab_size=99)
    assert source.config.vocab_size == 99
    assert torch.equal(source.read("lm_head.weight"), weights["lm_head.weight"][:99])
    with pytest.raises(MismatchError, match="128 rows"):
        open_megatron(tmp_path, true_vocab_size=129)


def test_legacy_rotary_leaves_rows_as_they_are(weights, tmp_path):
    formulas.write_folder(tmp_path, weights, SIZES)
    name = "model.layers.0.self_attn.q_proj.weight"
    raw = open_megatron(tmp_path, legacy_rotary=True).read(name)
    assert torch.equal(raw[:16], formulas.rotary_rows(weights[name][:16]))
    assert torch.equal(open_megatron(tmp_path).read(name), weights[name])


@pytest.mark.parametrize(
    ("vocab", "tp", "rows"),
    [(32000, 1, 32000), (32000, 2, 32000), (32000, 4, 32256), (32000, 8, 32768)]
    + [(v, tp, rows) for v in (32016, 32017, 32019, 32033) for tp, rows in ((1, 32128), (2, 32256), (4, 32256), (8, 32768))],
)
def test_padded_sizes(vocab, tp, rows):
    assert padded_rows(vocab, 128, tp) == rows


@pytest.mark.parametrize("new_rows", ["mean", "copy_last"])
def test_new_tokens_and_padding_rows(new_rows, weights, tmp_path):
    folder = write_megatron(
        tmp_path / "m",
        formulas.InMemory(weights, CONFIG),
        tp=2,
        pp=1,
        dtype=torch.float32,
        true_vocab_size=130,
        vocab_divisible_by=8,
        new_rows=new_rows,
    )
    assert folder.name == "release"
    table = open_megatron(tmp_path / "m", true_vocab_size=144).read("lm_head.weight")
    old = weights["lm_head.weight"]
    assert torch.equal(table[:128], old)
    expected = old.double().mean(0).float() if new_rows == "mean" else old[-1]
    assert torch.equal(table[128:130], expected.expand(2, -1))
    assert torch.equal(table[130:], old[-1].expand(14, -1))
    assert open_megatron(tmp_path / "m").config.vocab_size == 130


def test_tied_models_become_untied_with_the_same_function(weights, tmp_path):
    tied = ModelConfig(**{**{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}, "tie_embeddings": True})
    names = {name: weight for name, weight in weights.items() if name != "lm_head.weight"}
    folder = write_megatron(tmp_path / "m", formulas.InMemory(names, tied), tp=2, pp=2, dtype=torch.float32)
    assert_same(open_megatron(tmp_path / "m"), names)
    (folder / "medsft.json").unlink()  # as after training in the original: now the two tables are two weights
    assert torch.equal(open_megatron(tmp_path / "m").read("lm_head.weight")[:128], names["model.embed_tokens.weight"])
