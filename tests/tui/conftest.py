"""Recorded runs in every state, a fixed clock, and screenshots that are compared as text.

`MEDSFT_UPDATE_SNAPSHOTS=1 pytest tests/tui` writes the screenshots anew; look at them before committing.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import tiny
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input

from medsft.core.run.events import Event
from medsft.core.run.rundir import RunDir
from medsft.tui.app import MedsftApp

NOW = 1_764_000_000.0
SNAPSHOTS = Path(__file__).parent / "__snapshots__"


def step(iteration: int, total: int) -> dict[str, object]:
    """A smooth curve with a wobble and one spike, the same each time."""
    loss = 1.2 + 1.8 * math.exp(-iteration / 60) + 0.1 * math.sin(iteration * 1.7) + (1.5 if iteration == 150 else 0)
    return {
        "iteration": iteration,
        "total": total,
        "loss": loss,
        "lr": 2e-5 * min(1.0, iteration / 30) * (1 - 0.8 * iteration / total),
        "grad_norm": 0.8 + 0.3 * math.cos(iteration * 0.9),
        "tokens": 20_000,
        "supervised_tokens": 5_000,
        "tokens_per_second": 4_000 + 100 * math.sin(iteration),
        "step_seconds": 5.0,
        "eta_seconds": 5.0 * (total - iteration),
        "memory_bytes": 3 << 30,
        "epoch": 3 * iteration / total,
    }


def record(run: RunDir, last: int, total: int, end: tuple[str, dict[str, object]] | None = None) -> None:
    """Write the log of a run that came to iteration `last`."""
    moments: list[tuple[str, dict[str, object]]] = [
        ("run_started", {"iteration": 0, "total": total, "world_size": 2, "host": "node"})
    ]
    for iteration in range(1, last + 1):
        moments.append(("step", step(iteration, total)))
        if iteration % 50 == 0:
            moments.append(
                ("eval", {"iteration": iteration, "loss": 1.4 + math.exp(-iteration / 50), "perplexity": 4.1, "accuracy": 0.6})
            )
        if iteration % 100 == 0:
            moments.append(("checkpoint", {"iteration": iteration, "folder": "iter", "bytes": 1 << 30, "seconds": 4.0}))
        if iteration == 120:
            moments.append(("warning", {"message": "The gradient norm was 9.1, clipped to 1."}))
    if end is not None:
        moments.append(end)
    start = NOW - 2 - 5.0 * len(moments)
    lines = [Event(n, start + 5.0 * (n + 1), kind, data).to_line() for n, (kind, data) in enumerate(moments)]
    run.events_path.write_text("".join(lines))


ENDS: dict[str, tuple[str, dict[str, object]] | None] = {
    "running": None,
    "stopping": None,
    "lost": None,
    "stopped": ("stopped", {"iteration": 230}),
    "finished": ("finished", {"iteration": 230, "export": "runs/llama-0.135b-hf-smollm2-pubmedqa"}),
    "failed": (
        "failed",
        {
            "reason": "The loss of iteration 231 is not a number.",
            "remedy": "Lower --lr, or use --precision fp32.",
            "exit_code": 6,
        },
    ),
}


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    """Return a function that makes a recorded run in a given state, under a path that is the same each time."""
    monkeypatch.chdir(tmp_path)

    def make(state: str, name: str = "llama-0.135b-tp1-pp1-smollm2-pubmedqa", last: int = 230, total: int = 400) -> RunDir:
        run = RunDir(Path("runs") / name)
        run.create(json.dumps({"format": 0}))
        os.utime(run.plan_path, (NOW, NOW))
        (run.logs / "rank_0.log").write_text("loading the base model\ntraining starts\nslow batch: 9.1 s\n")
        if state != "planned":
            done = total if state == "finished" else last
            record(run, done, total, ENDS[state])
            for saved in range(100, done + 1, 100)[-2:]:
                run.checkpoint_path(saved).mkdir()
        if state in ("running", "stopping"):
            run.claim(os.getpid())
        if state == "stopping":
            run.request("stop")
        assert run.state(run.view()) == state
        return run

    return make


@pytest.fixture
def monitor(make_run: Callable[..., RunDir]) -> Callable[..., MedsftApp]:
    """Return a function that makes the app on the monitor of a run in a given state."""
    return lambda state="running", **kwargs: MedsftApp("monitor", run=make_run(state, **kwargs), clock=lambda: NOW)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Return a function that waits until a condition holds."""

    async def wait(pilot: object, condition: Callable[[], object], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not come true"
            await pilot.pause(0.05)  # type: ignore[attr-defined]

    return wait


def picture(app: App[int]) -> str:
    """Return the screen as SVG, without what differs from one process to the next."""
    for field in app.screen.query(Input):
        field.cursor_blink = False
    svg = re.sub(r"terminal-\d+", "terminal", app.export_screenshot(title="medsft"))
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


@pytest.fixture
def same_as_before() -> Callable[..., Awaitable[None]]:
    """Return a function that waits until the screen is the picture of that name: tables lay themselves out when idle."""

    async def compare(pilot: Pilot[int], name: str) -> None:
        path = SNAPSHOTS / f"{name}.svg"
        if os.environ.get("MEDSFT_UPDATE_SNAPSHOTS"):
            await pilot.pause(1.0)
            path.write_text(picture(pilot.app))
        assert path.exists(), f"{path} is missing; write it with MEDSFT_UPDATE_SNAPSHOTS=1"
        wanted = path.read_text()
        for _ in range(50):
            if picture(pilot.app) == wanted:
                return
            await pilot.pause(0.1)
        assert picture(pilot.app) == wanted, f"the screen differs from {path}"

    return compare


ROWS = 640


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model (of sizes only), rows under unusual keys, and settings; the machine is always the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from medsft.core.devices import Devices
    from medsft.core.planning import alternatives, auto_layout, folders, planner
    from medsft.core.planning.adapter import AdapterPlan
    from medsft.core.planning.memory import MemoryEstimate, Workload

    def estimate(_model: object, _layout: object, work: Workload, adapter: AdapterPlan | None = None) -> MemoryEstimate:
        """Return what the pictures show: they are not about the formula."""
        memory = {"weights": 3 << 30, "gradients": 2 << 30, "optimizer": 4 << 30, "activations": 1 << 30, "process": 1 << 29}
        if work.optimizer == "adamw8bit":
            memory |= {"optimizer": 1 << 30}
        part = 1 if adapter is None else 4 if adapter.base_precision == "nf4" else 2
        return MemoryEstimate(**{name: size // part for name, size in memory.items()})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(planner, "find_devices", lambda: Devices("cuda", 2, 16 << 30, "a device", bf16=True))
    for module in (alternatives, auto_layout):
        monkeypatch.setattr(module, "estimate_memory", estimate)
    monkeypatch.setattr(folders, "free_bytes", lambda path: 500 << 30)
    monkeypatch.setattr(planner, "free_bytes", lambda path: 500 << 30)
    for name in ("base", "found/other"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        sizes: dict[str, float] = {
            "hidden_size": 512,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
        }
        sizes |= {"num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True, **sizes}))
        tiny.write_weights(folder)
        words = {"<unk>": 0, **{f"w{n}": n + 1 for n in range(80)}}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(folder / "tokenizer.json"))
    rows = [{"system": "be brief", "input": f"w{n % 80} " * (1 + n % 30), "output": f"w{n % 7} " * 5} for n in range(ROWS)]
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "medsft.toml").write_text('[checkpoints.tiny]\n"0.02" = "base"\n\n[checkpoints.gone]\n7 = "nowhere"\n')
    return tmp_path


@pytest.fixture
def wizard(project: Path) -> Callable[[], MedsftApp]:
    """Return a function that makes the app on the wizard in that folder."""
    return lambda: MedsftApp("wizard", runs_folder=Path("runs"), settings_file=Path("medsft.toml"), clock=lambda: NOW)
