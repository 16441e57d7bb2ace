"""A set of which one bit has changed is not trained on."""

from __future__ import annotations

import pytest
import tiny

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.project(tmp_path_factory.mktemp("sets"))


FILES = [
    f"words{half}/words{half}-{file}" for half in ("", "-val") for file in ("text.bin", "role.bin", "text.idx", "answers.npy")
]


@pytest.mark.parametrize("name", FILES)
def test_one_bit(made, tmp_path, capfd, name):
    config, settings = made
    plan = tiny.plan_of(config, settings, save_checkpoint_dir=tmp_path, iters=2)
    path = config.tokenized_data_dir / name
    before = path.read_bytes()
    changed = bytearray(before)
    changed[len(changed) // 2 + 20] ^= 1
    path.write_bytes(changed)
    try:
        with pytest.raises(Exception, match="exit code 3"):
            tiny.train(plan)
    finally:
        path.write_bytes(before)
    message = capfd.readouterr().err
    assert "belong together" in message or f"is damaged: the content of {path.name} has changed" in message
    assert "--retokenize" in message
    assert str(path.parent) in message


def test_all_ranks_end(made, tmp_path, capfd):
    config, settings = made
    plan = tiny.plan_of(
        config, settings, save_checkpoint_dir=tmp_path, nproc_per_node=2, iters=2, tokenized_data_dir=tmp_path / "sets"
    )
    path = tmp_path / "sets" / "words" / "words-text.bin"
    changed = bytearray(path.read_bytes())
    changed[100] ^= 4
    path.write_bytes(changed)
    with pytest.raises(Exception, match="exit code 3"):
        tiny.train(plan)
    assert capfd.readouterr().err.count("the content of words-text.bin has changed") >= 1


def test_a_whole_set_is_trained_on(made, tmp_path):
    config, settings = made
    plan = tiny.plan_of(config, settings, save_checkpoint_dir=tmp_path, iters=2)
    assert tiny.train(plan)[-1].kind != "failed"
