"""One start for the wizard, the command line and scripts, on one node and on several."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from medsft.core.cluster import rendezvous
from medsft.core.config.run_config import RunConfig
from medsft.core.planning.plan import RunPlan
from medsft.core.run.launch import load_launched_plan, load_plan, read_launch, write_start
from medsft.core.run.rundir import RunDir
from medsft.core.settings import Settings
from medsft.core.workflow import faults_in_rows, prepare, prepare_and_start, resume, start
from medsft.errors import LaunchError, MedsftError
from medsft.tui.wizard import backend


@pytest.fixture
def port() -> int:
    """A free port with a free one behind it."""
    while True:
        with socket.create_server(("", 0)) as one:
            number = int(one.getsockname()[1])
            try:
                socket.create_server(("", number + 1)).close()
            except OSError:
                continue
            return number


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes whose supervisors were to be started, in place of processes."""
    nodes: list[int] = []
    monkeypatch.setattr(rendezvous, "spawn_supervisor", lambda run, node=0: nodes.append(node))
    return nodes


def on_two_nodes(config: RunConfig, port: int) -> RunConfig:
    return replace(config, nodes=2, addr="127.0.0.1", port=port)


class Other(threading.Thread):
    """Node 1, as its command starts it."""

    def __init__(self, config: RunConfig, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.config, self.settings = replace(config, rank=1), settings
        self.run_dir: RunDir | None = None
        self.error: MedsftError | None = None

    def run(self) -> None:
        try:
            self.run_dir = prepare_and_start(self.config, self.settings)
        except MedsftError as error:
            self.error = error


def test_the_wizard_starts_a_run_on_two_nodes(tmp_path: Path, port: int, supervised: list[int]) -> None:
    config, settings = tiny.plannable(tmp_path, global_batch=8)
    config = on_two_nodes(config, port)
    expected = prepare(replace(config, nodes=1, addr=None), settings).num_iterations
    node_1 = Other(config, settings)
    node_1.start()
    shown: list[object] = []
    run = backend.start_run(config, tmp_path / "medsft.toml", expected, shown.append)
    node_1.join(60)
    assert isinstance(run, RunDir)
    assert node_1.run_dir == run
    assert sorted(supervised) == [0, 1]
    assert (read_launch(run).nodes, load_launched_plan(run).num_iterations) == (2, expected)
    assert "Waiting for node 1." in shown


def test_another_number_of_iterations_is_confirmed_before_any_node_starts(
    tmp_path: Path, port: int, supervised: list[int]
) -> None:
    config, settings = tiny.plannable(tmp_path, global_batch=8)
    config = on_two_nodes(config, port)
    node_1 = Other(config, settings)
    node_1.start()
    answer = backend.start_run(config, tmp_path / "medsft.toml", 999_999, lambda _: None)
    node_1.join(60)
    assert isinstance(answer, int)
    assert f"{answer:,} iterations" in str(node_1.error)
    assert supervised == []


def test_a_resume_starts_every_node(tmp_path: Path, port: int, supervised: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    config, settings = tiny.plannable(tmp_path, global_batch=8)
    plan = prepare(config, settings)
    run = RunDir(Path(plan.run_dir))
    run.create(plan.to_json())
    changes = {"nodes": 2, "addr": "127.0.0.1", "port": port}
    started: list[RunDir] = []
    node_1 = threading.Thread(target=lambda: started.append(start(resume(run, rank=1, **changes))), daemon=True)
    node_1.start()
    started.append(start(resume(run, rank=0, **changes)))
    node_1.join(60)
    assert started == [run, run]
    assert sorted(supervised) == [0, 1]
    monkeypatch.setenv(rendezvous.JOIN_VARIABLE, "0.2")
    with pytest.raises(LaunchError, match=r"Node 1 did not connect within 0 seconds\."):
        start(resume(run, rank=0, **changes))


def test_confirm_may_change_the_iterations_and_the_plan_is_shown_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, settings = tiny.plannable(tmp_path, global_batch=8)
    order: list[str] = []

    def confirm(plan: RunPlan) -> RunConfig:
        order.append("asked")
        return replace(plan.config, iters=3)

    def launched(plan: RunPlan) -> RunDir:
        order.append(f"started with {plan.num_iterations}")
        return RunDir(Path(plan.run_dir))

    monkeypatch.setattr(rendezvous, "start", launched)
    prepare_and_start(config, settings, confirm=confirm, on_plan=lambda plan: order.append(f"planned {plan.num_iterations}"))
    assert order == ["asked", "planned 3", "started with 3"]


def test_faults_in_rows_are_told_in_one_sentence_before_a_start(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = [f'{{"prompt": "Why is thing {n} so?", "gold": "It is so."}}\n' for n in range(5)]
    path.write_text("".join(good))
    assert faults_in_rows(RunConfig(data=(path,))) == ""
    assert faults_in_rows(RunConfig()) == ""
    bad = ['{"prompt": "Call 617-555-0143?", "gold": "I am sorry, but I cannot help."}\n', '{"prompt": "x?", "gold": "n/a"}\n']
    path.write_text("".join([*good, *bad]))
    said = faults_in_rows(RunConfig(data=(path,)))
    assert said == (
        "--data: of 7 rows that were looked at, 1 has an empty question or answer, 1 has an answer that refuses, "
        "1 holds a phone number. `medsft check` looks at all rows and shows where they are."
    )


def test_what_is_typed_on_a_stopped_run_holds_from_then_on(tmp_path: Path) -> None:
    config, settings = tiny.plannable(tmp_path, keep_best="none", micro_batch=1)
    run = write_start(prepare(config, settings))
    first = run.plan_path.read_bytes()
    typed: dict[str, Any] = {"recompute": "full", "keep_best": "loss", "patience": 3, "keep_last": 1, "save_interval": 7}
    typed |= {"export_checkpoint": "both", "micro_batch": 2}
    plan = prepare(replace(config, **typed), settings)
    write_start(plan)
    launched = load_launched_plan(run)
    assert launched.config == replace(config, **{**typed, "micro_batch": 1})
    assert (launched.micro_batch, launched.keeps_best) == (2, True)
    assert load_plan(run).config == launched.config
    again = resume(run)
    assert {name: getattr(again.config, name) for name in typed} == {**typed, "micro_batch": 1}
    assert run.plan_path.read_bytes() == first
    assert again.identity == launched.identity == load_plan(run).identity
