"""A real run in processes of its own, killed and stopped, ends like one that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import tiny
from live import (
    VICTIMS,
    assert_nothing_survives,
    kill,
    processes_of,
    signal_all,
    supervisor_of,
    wait_for,
    wait_for_end,
    wait_for_files,
    wait_for_steps,
    wait_for_workers,
    workers_of,
)

from medsft.core.run import processes
from medsft.core.run.events import EventReader
from medsft.core.run.launch import read_launch, start
from medsft.core.run.rundir import RunDir
from medsft.core.workflow import follow, prepare, resume
from medsft.errors import AlreadyFinishedError, LaunchError, MismatchError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]
KILLS = int(os.environ.get("MEDSFT_KILLS", "5"))
"""How often a run is killed at random moments."""
ITERATIONS = 30 * (KILLS + 1)


def assert_same_run(one: RunDir, two: RunDir, iterations: int) -> None:
    """Every iteration's numbers and the exported weights are the same."""
    a, b = one.view(), two.view()
    assert list(b.steps) == list(range(1, iterations + 1))
    for name in ("loss", "grad_norm"):
        assert b.series[name] == a.series[name]
    assert b.eval_series["loss"] == a.eval_series["loss"]
    assert (b.tokens, b.supervised_tokens) == (a.tokens, a.supervised_tokens)
    models = Path(a.export), Path(b.export)
    names = [{str(file.relative_to(model)) for file in model.rglob("*.safetensors")} for model in models]
    assert names[0] == names[1]
    assert "model.safetensors" in names[0]
    for name in names[0]:
        assert (models[0] / name).read_bytes() == (models[1] / name).read_bytes(), name


def project(folder: Path, **changes):
    config, settings = tiny.project(folder)
    settings_of_run = {"iters": 60, "save_interval": 8, "eval_interval": 30, "nproc_per_node": 2, "tp": 1, "pp": 1}
    return lambda: prepare(tiny.from_mapping({**settings_of_run, **changes}, base=config), settings)


def test_killed_twice_stopped_once_and_finished_once(tmp_path):
    undisturbed = start(project(tmp_path / "a")())
    plan = project(tmp_path / "b")
    for rank in (1, 0):
        run = start(plan())
        wait_for_steps(run, 11)
        workers_of(run)[rank].send_signal(signal.SIGKILL)
        assert wait_for_end(run) == "failed"
        view = run.view()
        assert f"Rank {rank} was killed by signal 9" in view.reason
        assert view.exit_code == 6
    run = start(plan())
    with pytest.raises(LaunchError, match="is running"):
        start(plan())
    wait_for_steps(run, 1)
    os.kill(supervisor_of(run), signal.SIGTERM)
    assert wait_for_end(run) == "stopped"
    assert run.latest_checkpoint() == run.view().iteration < 60
    run = start(plan())
    wait_for_steps(run, 1)
    ranks = workers_of(run)
    os.kill(supervisor_of(run), signal.SIGKILL)
    # Ranks whose supervisor is gone save and end by themselves; until then the run is neither ended nor to be removed.
    seen_alive = run.alive()
    assert seen_alive or not any(rank.is_running() for rank in ranks)
    if seen_alive:
        with pytest.raises(MismatchError, match="is running"):
            run.delete()
    assert wait_for_end(run) == "stopped"
    assert_nothing_survives(run)
    run = start(plan())
    events = list(follow(run))
    assert events[-1].kind == "finished"
    assert run.state(run.view()) == "finished"

    assert wait_for_end(undisturbed) == "finished"
    assert_same_run(undisturbed, run, 60)
    with pytest.raises(AlreadyFinishedError, match="its model is in"):
        plan()


@pytest.mark.parametrize(
    "kind",
    [{"adapter": "lora", "lora_rank": 4}, {"optimizer": "adamw8bit", "precision": "bf16"}],
    ids=lambda kind: next(iter(kind)),
)
def test_killed_while_it_trains_saves_and_is_exported(tmp_path, kind):
    """Runs whose checkpoints hold other things than those of all weights trained by AdamW."""
    undisturbed = start(project(tmp_path / "a", save_interval=2, **kind)())
    plan = project(tmp_path / "b", save_interval=2, **kind)
    run = start(plan())
    wait_for_steps(run, 5)
    kill(run, "rank 1")
    assert wait_for_end(run) == "failed"
    run = start(plan())
    wait_for_steps(run, 1)
    wait_for_files(run, ".iter_*.saving")
    kill(run, "rank 0")
    assert wait_for_end(run) == "failed"
    run = start(plan())
    half_written = f".{Path(plan().export_dir).name}.*.new"
    wait_for(lambda: any(run.path.parent.glob(half_written)))
    signal_all(processes_of(run), signal.SIGKILL)
    assert wait_for_end(run) != "finished"
    assert_nothing_survives(run)
    assert run.latest_checkpoint() == 60
    assert not Path(plan().export_dir).exists()
    run = start(plan())
    assert wait_for_end(run) == wait_for_end(undisturbed) == "finished"
    assert not list(run.path.parent.glob(half_written))
    assert_same_run(undisturbed, run, 60)
    assert (Path(run.view().export) / "adapter" / "adapter_model.safetensors").is_file() == ("adapter" in kind)


@pytest.mark.timeout(180 + 40 * KILLS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments(tmp_path, ranks):
    """Whoever is killed, nothing goes on unseen, and the run ends as if nothing had been."""
    seed = time.time_ns()
    print(f"moments drawn with seed {seed}")
    draw = random.Random(seed)
    settings = {"nproc_per_node": ranks, "iters": ITERATIONS, "save_interval": 4, "eval_interval": 60}
    victims = [one for one in VICTIMS if ranks == 2 or one != "rank 1"]
    undisturbed = start(project(tmp_path / "a", **settings)())
    plan = project(tmp_path / "b", **settings)
    before = "planned"
    for number in range(KILLS):
        run = start(plan())
        if draw.random() < 0.3:
            wait_for_workers(run, ranks)
        elif draw.random() < 0.5:
            wait_for_steps(run, 1)
        else:
            wait_for_steps(run, 1)
            wait_for_files(run, ".iter_*.saving")
        time.sleep(draw.uniform(0, 0.3))
        victim = victims[number % len(victims)]
        kill(run, victim)
        state = wait_for_end(run)
        if "supervisor" not in victim:
            assert state == "failed", victim
        elif any(event.seq > read_launch(run).after for event in EventReader(run.events_path).read()):
            # Without its supervisor a run has saved and stopped, or, just before its first iteration, it is lost.
            assert state in ("stopped", "lost"), victim
        else:
            assert state == before, f"{victim}: a start that was over before it could log anything changes nothing"
        assert_nothing_survives(run)
        before = state
    run = start(plan())
    assert wait_for_end(run, 90 + 20 * KILLS) == wait_for_end(undisturbed) == "finished"
    assert_same_run(undisturbed, run, ITERATIONS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stop_while_ranks_are_still_starting(tmp_path, ranks):
    """As Slurm does it: SIGTERM to every process. What has not learnt anything has nothing to save, and is no failure."""
    plan = project(tmp_path, nproc_per_node=ranks)
    run = start(plan())
    wait_for_workers(run, ranks)
    signal_all(processes_of(run), signal.SIGTERM)
    assert wait_for_end(run) == "stopped"
    assert_nothing_survives(run)
    run = start(plan())
    os.kill(supervisor_of(run), signal.SIGTERM)  # before it could even say what SIGTERM means
    assert wait_for_end(run) == "stopped"
    assert_nothing_survives(run)


def test_another_host_goes_on_at_once_after_a_stop(tmp_path, monkeypatch):
    plan = project(tmp_path, nproc_per_node=1)
    run = start(plan())
    wait_for_steps(run, 1)
    run.request("stop")
    assert wait_for_end(run) == "stopped"
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "another")
    assert not run.alive()
    assert run.state(run.view()) == "stopped"


@pytest.mark.parametrize("removed", [False, True])
def test_a_run_whose_folder_goes_away_ends(tmp_path, removed):
    plan = project(tmp_path / "a", iters=500)
    run = start(plan())
    wait_for_steps(run, 1)
    before = processes_of(run)
    now = RunDir(tmp_path / "elsewhere")
    run.path.rename(now.path)
    if removed:
        shutil.rmtree(now.path, ignore_errors=True)
    psutil.wait_procs(before, timeout=20)
    assert not processes_of(run)
    assert not run.path.exists()
    if not removed:
        assert now.state(now.view()) == "failed"
        assert now.view().reason == f"{run.path} was moved to {now.path} while it trained: training has ended."
        with pytest.raises(MismatchError, match="not a run"):
            run.read_plan()


def test_a_project_that_was_moved_goes_on(tmp_path, monkeypatch):
    """With `resume` from anywhere, and with `sft` from where the project is now: nothing is looked for at the old place."""
    before = tmp_path / "a" / "project"
    run = start(project(before)())
    wait_for_steps(run, 1)
    run.request("stop")
    assert wait_for_end(run) == "stopped"
    now = tmp_path / "b" / "deeper" / "moved"
    now.parent.mkdir(parents=True)
    before.rename(now)
    before.parent.rmdir()
    run = RunDir(now / run.path.relative_to(before))
    monkeypatch.chdir(tmp_path)
    start(resume(run))
    wait_for_steps(run, 1)
    run.request("stop")
    assert wait_for_end(run) == "stopped", run.view().reason
    config, settings = tiny.config_in(now)
    again = {"iters": 60, "save_interval": 8, "eval_interval": 30, "nproc_per_node": 2, "tp": 1, "pp": 1}
    assert start(prepare(tiny.from_mapping(again, base=config), settings)).path == run.path
    assert wait_for_end(run) == "finished", run.view().reason
    assert Path(run.view().export).parent == now / "runs"
    assert not before.exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_are_restarted_from_the_last_checkpoint(tmp_path, ranks):
    run = start(project(tmp_path, max_restarts=1, nproc_per_node=ranks)())
    wait_for(lambda: run.view().iteration > 12)
    workers_of(run)[-1].send_signal(signal.SIGKILL)
    assert wait_for_end(run) == "finished"
    view = run.view()
    assert view.resumes == 1
    assert view.info["iteration"] >= 8
    assert list(view.steps) == list(range(1, 61))


def test_the_model_of_a_run_in_transformers(tmp_path):
    """What is exported loads elsewhere, gives our validation loss, and prompts with exactly the text of training."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medsft.core.data.sources.read import read_conversations
    from medsft.core.data.sources.row_format import RowFormat
    from medsft.core.data.tokenizers.open import open_tokenizer
    from medsft.core.evaluation.answer_score import score_of_answer

    run = start(project(tmp_path, iters=4, eval_interval=4, nproc_per_node=1)())
    assert wait_for_end(run) == "finished"
    folder = Path(run.view().export)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    opened = open_tokenizer(folder)
    conversations = list(read_conversations([tmp_path / "val.jsonl"], RowFormat()))
    total, tokens = 0.0, 0
    for conversation in conversations:
        asked = score_of_answer("", conversation, opened)
        [answer] = asked.continuations
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*asked.prefix, *answer]])).logits[0, len(asked.prefix) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        tokens += len(answer)
    view = run.view()
    assert total / tokens == pytest.approx(view.last_eval("loss"), abs=1e-3)
    messages = [message._asdict() for message in conversations[0]]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == opened.template.text(conversations[0])
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens > 0
