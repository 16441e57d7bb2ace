"""A real run in processes of its own, killed and stopped, ends like one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tiny

from medsft.core.run.launch import start
from medsft.core.run.pipeline import follow_to_end, prepare
from medsft.core.run.rundir import RunDir
from medsft.errors import AlreadyFinishedError, LaunchError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]
KILLS = int(os.environ.get("MEDSFT_KILLS", "5"))
"""How often a run is killed at random moments."""
ITERATIONS = 30 * (KILLS + 1)


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wait_for_end(run: RunDir, seconds: float = 90) -> str:
    wait_for(lambda: not run.alive(), seconds)
    return run.state(run.view())


def workers_of(run: RunDir) -> list[psutil.Process]:
    """The ranks of a run: processes that were started with its folder, in the order of their rank."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "medsft.core.engine.worker" in words and str(run.path) in words and "torch.distributed.run" not in words:
            found.append(process)
    return sorted(found, key=lambda process: process.environ()["RANK"])


def supervisor_of(run: RunDir) -> int:
    return int(json.loads(run.process_path.read_text())["pid"])


def wait_for_another_step(run: RunDir) -> None:
    done = run.view().iteration
    wait_for(lambda: run.view().iteration > done)


def assert_same_run(one: RunDir, two: RunDir, iterations: int) -> None:
    """Every iteration's numbers and the exported weights are the same."""
    a, b = one.view(), two.view()
    assert list(b.steps) == list(range(1, iterations + 1))
    for name in ("loss", "grad_norm"):
        assert b.series[name] == a.series[name]
    assert b.eval_series["loss"] == a.eval_series["loss"]
    assert (b.tokens, b.supervised_tokens) == (a.tokens, a.supervised_tokens)
    weights = [Path(view.export, "model.safetensors").read_bytes() for view in (a, b)]
    assert weights[0] == weights[1]


def project(folder: Path, **changes):
    config, settings = tiny.project(folder)
    settings_of_run = {"iters": 60, "save_interval": 8, "eval_interval": 30, "nproc_per_node": 2, "tp": 1, "pp": 1}
    return lambda: prepare(tiny.from_mapping({**settings_of_run, **changes}, base=config), settings)


def test_killed_twice_stopped_once_and_finished_once(tmp_path):
    undisturbed = start(project(tmp_path / "a")())
    plan = project(tmp_path / "b")
    for rank in (1, 0):
        run = start(plan())
        done = run.view().iteration
        wait_for(lambda run=run, done=done: run.view().iteration > done + 10)
        workers_of(run)[rank].send_signal(signal.SIGKILL)
        assert wait_for_end(run) == "failed"
        view = run.view()
        assert f"Rank {rank} was killed by signal 9" in view.reason
        assert view.exit_code == 6
    run = start(plan())
    with pytest.raises(LaunchError, match="is running"):
        start(plan())
    wait_for_another_step(run)
    os.kill(supervisor_of(run), signal.SIGTERM)
    assert wait_for_end(run) == "stopped"
    assert run.latest_checkpoint() == run.view().iteration < 60
    run = start(plan())
    wait_for_another_step(run)
    os.kill(supervisor_of(run), signal.SIGKILL)
    wait_for(lambda: not run.alive())
    # The next start waits for the ranks of the one whose supervisor is gone: they save and end by themselves.
    run = start(plan())
    events = list(follow_to_end(run))
    assert events[-1].kind == "finished"
    assert run.state(run.view()) == "finished"

    assert wait_for_end(undisturbed) == "finished"
    assert_same_run(undisturbed, run, 60)
    with pytest.raises(AlreadyFinishedError, match="its model is in"):
        plan()


@pytest.mark.timeout(180 + 40 * KILLS)
def test_killed_at_random_moments(tmp_path):
    seed = time.time_ns()
    print(f"moments drawn with seed {seed}")
    draw = random.Random(seed)
    undisturbed = start(project(tmp_path / "a", iters=ITERATIONS, save_interval=4, eval_interval=60)())
    plan = project(tmp_path / "b", iters=ITERATIONS, save_interval=4, eval_interval=60)
    for _ in range(KILLS):
        run = start(plan())
        if draw.random() < 0.3:
            wait_for(lambda run=run: len(workers_of(run)) == 2)
        elif draw.random() < 0.5:
            wait_for_another_step(run)
        else:
            wait_for_another_step(run)
            wait_for(lambda run=run: any(run.path.glob(".iter_*.saving")))
        time.sleep(draw.uniform(0, 0.3))
        workers_of(run)[draw.randrange(2)].send_signal(signal.SIGKILL)
        assert wait_for_end(run) == "failed"
    run = start(plan())
    assert wait_for_end(run, 90 + 20 * KILLS) == wait_for_end(undisturbed) == "finished"
    assert_same_run(undisturbed, run, ITERATIONS)


def test_ranks_are_restarted_from_the_last_checkpoint(tmp_path):
    run = start(project(tmp_path, max_restarts=1)())
    wait_for(lambda: run.view().iteration > 12)
    workers_of(run)[1].send_signal(signal.SIGKILL)
    assert wait_for_end(run) == "finished"
    view = run.view()
    assert view.resumes == 1
    assert view.info["iteration"] >= 8
    assert list(view.steps) == list(range(1, 61))


def test_the_model_of_a_run_in_transformers(tmp_path):
    """What is exported loads elsewhere, gives our validation loss, and prompts with exactly the text of training."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medsft.core.data.columns import Keys
    from medsft.core.data.records import read_examples
    from medsft.core.data.tokenizers import open_tokenizer
    from medsft.core.engine.generate import answer_loss

    run = start(project(tmp_path, iters=4, eval_interval=4, nproc_per_node=1)())
    assert wait_for_end(run) == "finished"
    folder = Path(run.view().export)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    opened = open_tokenizer(folder)
    examples = list(read_examples([tmp_path / "val.jsonl"], Keys()))
    loss, tokens = answer_loss(model, examples, opened)
    view = run.view()
    assert loss == pytest.approx(view.last_eval("loss"), abs=1e-3)
    messages = [{"role": "user", "content": examples[0].question}, {"role": "assistant", "content": examples[0].answer}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == opened.template.text(examples[0])
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens > 0
