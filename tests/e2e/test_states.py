"""Every state that a kill, a failed write or damage can leave on the disk, and how a run goes on from it.

| what is there | left by | what happens |
|---|---|---|
| last checkpoint, tracker missing, behind, garbage | kill or full disk after the renaming | export, no training |
| last checkpoint damaged | a disk, a copy | named; trained again from the one before |
| a manifest that is damaged or of another checkpoint | a disk, a renaming by hand | as above |
| every checkpoint damaged | a disk | each named; trained from the base model |
| a file where a checkpoint should be | a hand | passed over |
| `.iter_N.saving`, no `iter_N` | kill while saving | trained again from the one before |
| an old checkpoint with some of its files | kill while removing (of earlier versions) | not used, not counted as kept |
| events torn, with garbage, missing | power cut, damage | the rest counts; the run goes on |
| plan.json torn | damage | `sft` writes it anew where its checkpoints are of it; `resume`, `export`: a clear error |
| control folder missing; launch.json, status line not writable as files | a hand, damage | made anew |
| process.json and heartbeat of a dead process, here or elsewhere | kill | nobody: the run goes on |
| "finished", but no model | a hand | exported again |
| the model, but no "finished" | kill between the two | logged, not exported again |
| a model with a damaged file | power cut, damage | kept under another name, exported again |
| a half-written model under another name | kill while exporting | removed |
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
from live import wait_for_end

from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import start
from medsft.core.run.rundir import RunDir, find_runs
from medsft.core.settings import load_settings
from medsft.core.workflow import check_against_existing, prepare, resume
from medsft.errors import AlreadyFinishedError, MedsftError, MismatchError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]
LAST = 12


def plan_in(folder: Path) -> RunPlan:
    """The plan of `medsft sft` in a copy of the project."""
    config, _ = tiny.config_in(folder)
    changes = {"iters": LAST, "save_interval": 4, "keep_last": 0, "keep_best": "none", "nproc_per_node": 1, "tp": 1, "pp": 1}
    return prepare(tiny.from_mapping(changes, base=config), load_settings(folder / "medsft.toml"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run that has all its checkpoints."""
    folder = tmp_path_factory.mktemp("made") / "project"
    tiny.project(folder)
    run = start(plan_in(folder))
    assert wait_for_end(run) == "finished", run.view().reason
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of that project, at another place."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    return copy


def run_in(folder: Path) -> RunDir:
    return next(run for run in find_runs(folder / "runs"))


def model_in(folder: Path) -> Path:
    return next(path for path in (folder / "runs").iterdir() if "-hf-" in path.name and not path.name.endswith("damaged"))


def forget(folder: Path, *, model: bool = True) -> RunDir:
    """Take the end of the run away, as if it had been killed after the last iteration."""
    run = run_in(folder)
    lines = run.events_path.read_text().splitlines(keepends=True)
    run.events_path.write_text("".join(line for line in lines if '"finished"' not in line and '"exporting"' not in line))
    if model:
        shutil.rmtree(model_in(folder))
    return run


def warnings(run: RunDir) -> str:
    return "\n".join(message for _, message in run.view().warnings)


def go_on(folder: Path, made: Path, *, trained: bool) -> RunDir:
    """Type `medsft sft` again: the run comes to the very end that it would have come to."""
    before = run_in(folder).view() if any(find_runs(folder / "runs")) else None
    run = start(plan_in(folder))
    assert wait_for_end(run) == "finished", run.view().reason
    started = [line for line in run.events_path.read_text().splitlines() if '"run_started"' in line]
    first = 1 if before is not None and before.info else 0
    assert (len(started) > first) == trained
    assert (model_in(folder) / "model.safetensors").read_bytes() == (model_in(made) / "model.safetensors").read_bytes()
    assert Path(run.view().export) == model_in(folder)
    assert run.tracker_path.read_text() == str(LAST)
    with pytest.raises(AlreadyFinishedError):
        plan_in(folder)
    return run


@pytest.mark.parametrize("tracker", [None, "8", "garbage"])
def test_the_last_checkpoint_without_its_tracker(folder, made, tracker):
    run = forget(folder)
    run.tracker_path.unlink()
    if tracker is not None:
        run.tracker_path.write_text(tracker)
    assert resume(run).identity
    go_on(folder, made, trained=False)


def truncate(path: Path) -> None:
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])


def flip(path: Path) -> None:
    shard = next(path.glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def flip_manifest(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"iteration": 12', '"iteration": 11'))


def swap(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("iter_0000008"), path)


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def become_unfinished(path: Path) -> None:
    path.rename(path.with_name(f".{path.name}.saving"))


@pytest.mark.parametrize("harm", [truncate, flip, flip_manifest, swap, become_a_file, become_unfinished])
def test_a_damaged_last_checkpoint_is_passed_over(folder, made, harm: Callable[[Path], None]):
    from medsft.core.engine.commands.export import export_run

    run = forget(folder)
    harm(run.checkpoint_path(LAST))
    taken = export_run(run, folder / "other")
    assert (taken.iteration, taken.total) == (8, LAST)
    run = go_on(folder, made, trained=True)
    if harm not in (become_a_file, become_unfinished):
        assert taken.passed_over[0].startswith("checkpoint iter_0000012 is damaged: ")
        assert taken.passed_over[0] in warnings(run)
    assert not list(run.path.glob(".iter_*"))


def test_every_checkpoint_is_damaged(folder, made):
    run = forget(folder)
    for iteration in run.checkpoints():
        truncate(run.checkpoint_path(iteration))
    run = go_on(folder, made, trained=True)
    assert all(f"iter_{iteration:07d} is damaged" in warnings(run) for iteration in (4, 8, 12))


def lose_events(run: RunDir) -> None:
    run.events_path.unlink()


def tear_events(run: RunDir) -> None:
    run.events_path.write_bytes(run.events_path.read_bytes()[:-20] + b"\0" * 100_000)


def spoil_events(run: RunDir) -> None:
    text = run.events_path.read_text().replace('"loss"', '"lxss"', 1).replace('"iteration":5', '"iteration":null')
    run.events_path.write_text("[1]\nnull\n{}\n" + text)


def tear_plan(run: RunDir) -> None:
    run.plan_path.write_text(run.plan_path.read_text()[:500])


def flip_plan(run: RunDir) -> None:
    run.plan_path.write_text(run.plan_path.read_text().replace('"lr": 0.01', '"lr": 0.05'))


def lose_control(run: RunDir) -> None:
    shutil.rmtree(run.control)


def tear_small_files(run: RunDir) -> None:
    (run.control / "launch.json").write_text("{")
    (run.path / ".status.txt").unlink()
    (run.path / ".status.txt").mkdir()
    run.process_path.write_text("[]")
    run.part_path("rank_0").write_text("nothing")
    (run.control / "stop").touch()


def die_elsewhere(run: RunDir) -> None:
    run.process_path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    os.utime(run.heartbeat_path, (time.time() - 100,) * 2)


def lose_an_old_one(run: RunDir) -> None:
    (run.checkpoint_path(4) / ".metadata").unlink()


@pytest.mark.parametrize(
    "harm",
    [
        *(lose_events, tear_events, spoil_events, tear_plan, flip_plan),
        *(lose_control, tear_small_files, die_elsewhere, lose_an_old_one),
    ],
)
def test_damage_beside_the_checkpoints(folder, made, harm: Callable[[RunDir], None]):
    run = forget(folder)
    harm(run)
    assert run.state(run.view()) in ("lost", "stopped")
    if harm in (tear_plan, flip_plan):
        with pytest.raises(MismatchError, match=r"damaged: .*\n.*medsft sft"):
            resume(run)
    go_on(folder, made, trained=False)


def test_finished_without_a_model(folder, made):
    shutil.rmtree(model_in(folder))
    go_on(folder, made, trained=False)


def test_a_model_without_a_finished_run(folder, made):
    forget(folder, model=False)
    before = model_in(folder).stat().st_ino
    go_on(folder, made, trained=False)
    assert model_in(folder).stat().st_ino == before, "not exported again"


@pytest.mark.parametrize("name", ["tokenizer.json", "medsft.json", "README.md"])
def test_a_damaged_model_is_exported_again(folder, made, name):
    (model_in(folder) / name).write_text("")
    left = model_in(folder).with_name(f".{model_in(folder).name}.999999.new")
    left.mkdir()
    run = go_on(folder, made, trained=False)
    assert (model_in(folder) / name).read_bytes() == (model_in(made) / name).read_bytes() or name == "medsft.json"
    kept = model_in(folder).with_name(f"{model_in(folder).name}-damaged")
    assert (kept / name).read_text() == ""
    assert kept.name in warnings(run)
    assert not left.exists()


def test_a_damaged_model_without_checkpoints_is_told(folder):
    (model_in(folder) / "tokenizer.json").write_text("")
    shutil.rmtree(run_in(folder).path)
    with pytest.raises(MismatchError, match=r"is damaged: tokenizer\.json has 0 bytes"):
        plan_in(folder)


def test_a_strange_folder_is_in_the_way(folder):
    run = forget(folder)
    plan = plan_in(folder)
    Path(plan.export_dir).mkdir()
    check_against_existing(plan)
    (Path(plan.export_dir) / "thesis.doc").touch()
    with pytest.raises(MismatchError, match="in the way"):
        check_against_existing(plan)
    assert run.checkpoints() == [4, 8, 12]


def test_an_early_checkpoint_is_exported_with_its_own_figures(folder):
    from medsft.core.engine.commands.export import export_run

    run = run_in(folder)
    view = run.view()
    taken = export_run(run, folder / "early", iteration=8)
    assert taken.iteration == 8
    record = json.loads((folder / "early" / "medsft.json").read_text())
    card = (folder / "early" / "README.md").read_text()
    assert record["metrics"]["loss"] == view.series["loss"][7]
    at_6 = view.eval_series["loss"][list(view.eval_steps).index(6)]
    assert record["metrics"]["validation_loss"] == at_6
    assert record["metrics"]["tokens"] == record["checkpoint"]["state"]["tokens"] < view.tokens
    assert "8 of 12" in card
    assert f"| Validation after iteration 6 | loss {at_6:.4f}" in card


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "one bit": flip_a_bit,
    "a folder": be_a_folder,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("whose", ["run", "model"])
def test_no_damaged_file_is_taken_for_a_bug(folder, whose, harm):
    """Whichever file is damaged, lists stay lists, and what cannot go on says so as an error for people."""
    from medsft.cli.runs import _rows
    from medsft.core.engine.commands.export import export_run

    damaged = run_in(folder).path if whose == "run" else model_in(folder)
    kept = folder / "kept"
    shutil.copytree(damaged, kept)
    for file in sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file()):
        shutil.rmtree(damaged)
        shutil.copytree(kept, damaged)
        HARMS[harm](damaged / file)
        rows = _rows(folder / "runs", sizes=True)
        assert len(rows) == 1, file
        with suppress(MedsftError):
            plan_in(folder)
        with suppress(MedsftError):
            resume(RunDir(damaged if whose == "run" else run_in(folder).path))
        if whose == "run" and file.parts[0] in ("plan.json", "iter_0000012") and harm != "removed":
            with suppress(MedsftError):
                assert export_run(RunDir(damaged), folder / "out").iteration == 8, file
            shutil.rmtree(folder / "out", ignore_errors=True)
