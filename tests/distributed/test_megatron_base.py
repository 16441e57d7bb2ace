"""A run that starts from a Megatron-LLM folder: it takes the folder's levels and trains the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from medsft.core.engine.commands.convert import convert
from medsft.core.engine.commands.export import export_run
from medsft.core.engine.formats.open import open_source
from medsft.core.models.conversion import Conversion
from medsft.core.run.rundir import RunDir
from medsft.core.settings import load_settings

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


def test_megatron_folder_trains_like_its_hugging_face_source(tmp_path):
    config, settings = tiny.project(tmp_path)
    from_hf = tiny.train(tiny.plan_of(config, settings, tp=2, pp=2, nproc_per_node=4, save_checkpoint_dir=tmp_path / "hf"))
    convert(
        Conversion(
            source=tmp_path / "base", destination=tmp_path / "llama2-0.001b-tp2-pp2", to="megatron", tp=2, pp=2, verify=False
        )
    )
    (tmp_path / "medsft.toml").write_text('[checkpoints.tiny]\n0.001 = "llama2-0.001b-tp2-pp2"\n')
    plan = tiny.plan_of(config, load_settings(tmp_path / "medsft.toml"))
    assert (plan.layout.tp, plan.layout.pp) == (2, 2)
    assert "-tp2-pp2-tiny-words" in Path(plan.run_dir).name
    names = ("loss", "grad_norm", "tokens")
    assert tiny.series(tiny.train(plan), "step", *names) == tiny.series(from_hf, "step", *names)
    exported = open_source(Path(export_run(RunDir(Path(plan.run_dir)), tmp_path / "out").folder))
    assert exported.config.vocab_size == plan.base.model.vocab_size
