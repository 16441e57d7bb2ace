"""What comes from elsewhere reaches a terminal as text: no controls, no markup."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner, Result

from medsft.cli import console
from medsft.cli.app import app
from medsft.cli.data import _print_sample
from medsft.cli.progress import _Display, _progress_bar, print_event_line
from medsft.core.config.run_config import RunConfig, to_mapping
from medsft.core.data.dataset.samples import Sample, SamplePart
from medsft.core.data.tokenizers.template import Role
from medsft.core.planning.plan import RunPlan
from medsft.core.printable import one_line, printable
from medsft.core.run.events import Event
from medsft.core.run.rundir import RunDir
from medsft.errors import ExitCode, MismatchError

STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Written down apart from the code: C0 and C1 without tab and newline, DEL, marks of direction, what takes no room."""
OTHERS = (0x202E, 0x2066, 0x200F, 0x200B, 0xFEFF, 0xE0041, 0xD800)
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp\u2066\r\b"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, list(arguments))


def toml(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "num_attention_heads": 4}))
    tiny.write_weights(folder)


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, *range(0x80, 0xA0), *OTHERS])
def test_what_steers_a_terminal_becomes_one_visible_sign(code: int) -> None:
    shown = one_line(f"a{chr(code)}b")
    assert len(shown) == 3
    assert not STEERS.search(shown)
    assert printable("a\tb\nc") == "a\tb\nc"
    shown.encode()


@pytest.mark.parametrize("text", ["Hörsturz, 37,5 °C", "می‌خواهم", "👩‍⚕️", "۝ ١٢", "一二", "a\u00a0b", "[/x] [red]"])
def test_what_people_write_stays(text: str) -> None:
    assert one_line(text) == text


def test_escape_is_seen() -> None:
    assert printable("\x1b[2J") == "␛[2J"


@pytest.mark.parametrize("folder", ["m/[v2]/base", "m/[red]x[/red]/base", "m/[/x]/base"])
def test_names_and_paths_are_never_markup(folder: str) -> None:
    write_model(Path(folder))
    assert invoke("checkpoints", "add", "mine", "0.0001", folder).exit_code == 0
    assert folder in invoke("checkpoints", "list").stdout
    assert folder in invoke("checkpoints", "scan", "m").stdout


def test_names_paths_and_messages_reach_the_terminal_without_controls(tmp_path: Path) -> None:
    name = f"m{HOSTILE}"
    write_model(tmp_path / name)
    outputs = [invoke("checkpoints", "scan", ".")]
    outputs.append(invoke("checkpoints", "add", "mine", "0.0001", name))
    outputs.append(invoke("checkpoints", "list"))
    outputs.append(invoke("checkpoints", "remove", f"no{HOSTILE}", "7"))
    outputs.append(invoke("watch", f"x{HOSTILE}"))
    outputs.append(invoke("watch", f"x{HOSTILE}", "--debug"))
    outputs.append(invoke("runs", f"--{HOSTILE}"))
    outputs.append(invoke("runs", f"extra{HOSTILE}"))
    outputs.append(invoke("sft", "--run_name", "r", "--nodes", "2", "--data", f"d{HOSTILE}", "--slurm"))
    run = RunDir(Path("runs") / f"r{HOSTILE}")
    run.create("{}")
    lines = [
        Event(0, 1.0, "run_started", {"total": 3, "host": HOSTILE}),
        Event(1, 1.0, "phase", {"name": HOSTILE}),
        Event(2, 1.0, "warning", {"message": HOSTILE}),
        Event(3, 1.0, "failed", {"reason": HOSTILE, "remedy": HOSTILE, "exit_code": 6}),
    ]
    run.events_path.write_text("".join(line.to_line() for line in lines))
    outputs += [invoke("runs", "--plain"), invoke("watch", "r", "--plain")]
    for output in outputs:
        assert len(output.output) > 10
        assert not STEERS.search(output.output), output.output
    assert "␛[2J" in outputs[-1].stdout
    run.write_status(HOSTILE)
    assert not STEERS.search((run.path / ".status.txt").read_text())


@pytest.mark.parametrize("command", [("runs", "--json"), ("watch", "r", "--json")])
def test_json_is_json_without_raw_controls(command: tuple[str, ...]) -> None:
    run = RunDir(Path("runs") / f"r{HOSTILE}")
    run.create("{}")
    run.events_path.write_text(Event(0, 1.0, "warning", {"message": HOSTILE}).to_line())
    result = invoke(*command)
    assert not STEERS.search(result.stdout)
    values = json.loads(result.stdout)
    assert HOSTILE in (values["message"] if isinstance(values, dict) else values[0]["name"])


def test_the_lines_of_a_run_hold_no_controls(capsys: pytest.CaptureFixture[str]) -> None:
    print_event_line(Event(0, 1.0, "warning", {"message": HOSTILE}))
    assert not STEERS.search(capsys.readouterr().out)


@pytest.mark.parametrize("family", ["../x", "a/b", "", "*", ".hidden", "x-tp1-pp1", "a\nb", HOSTILE])
def test_a_family_is_checked_like_the_names(family: str) -> None:
    write_model(Path("base"))
    Path("medsft.toml").write_text(f'[checkpoints.tiny]\n7 = {{ path = "base", family = {toml(family)} }}\n')
    result = invoke("checkpoints", "list")
    assert result.exit_code == ExitCode.USAGE
    assert "7, family: " in result.stderr
    Path("medsft.toml").unlink()
    result = invoke("checkpoints", "add", "tiny", "0.0001", "base", "--family", family)
    assert (result.exit_code, Path("medsft.toml").exists()) == (ExitCode.USAGE, False)
    assert "--family: " in result.stderr


@pytest.mark.parametrize("name", ["run_name", "id", "checkpoint"])
def test_names_in_a_plan_do_not_lead_out_of_its_folders(name: str) -> None:
    config = to_mapping(RunConfig(run_name="r")) | {name: "../../x"}
    with pytest.raises(MismatchError, match="cannot be part of a folder name"):
        RunPlan.from_json({"format": 1, "config": config, "estimates": {}})


def test_an_end_of_line_in_a_name_makes_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(("run", "state"), [("a\nb  finished", "failed")])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["run            state", "a␊b  finished  failed"]


def test_records_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    parts = (SamplePart(Role.QUESTION, f"first [/x] :smile:\nthen {HOSTILE}", 3), SamplePart(Role.ANSWER, "[red]yes", 1))
    _print_sample(Sample(0, 4, parts), RunConfig())
    shown = capsys.readouterr().out
    assert "first [/x] :smile:\nthen ␛]0;owned␇␛[2J" in shown
    assert "[red]yes" in shown
    assert not STEERS.search(shown)


def test_the_progress_bar_shows_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, color_system=None, width=200)
    monkeypatch.setattr(console, "note_console", lambda: terminal)
    with _progress_bar() as bar:
        display = _Display(bar)
        display.show(Event(0, 1.0, "run_started", {"total": 3}))
        display.show(Event(1, 1.0, "phase", {"name": f"[/x]{HOSTILE}"}))
        display.show(Event(2, 1.0, "warning", {"message": f"[/x] :smile: {HOSTILE}"}))
    assert "WARNING [/x] :smile: ␛]0;owned" in out.getvalue()
    assert "[/x]␛]0;owned␇␛[2J" in out.getvalue()
    assert "\x1b]0" not in out.getvalue()
    assert not set("\x07\x9b\x7f\u202e") & set(out.getvalue())
