"""The command line as a person meets it: flags, exit codes, messages, and where output goes."""

from __future__ import annotations

import json
import re
import shlex
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import typer
from kept import GOLDEN, ROOT
from typer.main import get_command
from typer.testing import CliRunner, Result

from medsft.cli import progress
from medsft.cli import train as cli_train
from medsft.cli.app import app
from medsft.cli.argv import normalize
from medsft.cli.confirm import confirm_iterations
from medsft.core.config.options import field_types
from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.rehearsal import ITERATIONS
from medsft.core.run.events import EventWriter
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, DataError, ExitCode, LaunchError, MedsftError, MismatchError, Problem, TrainingError

SECRET = "PATIENT-NAME-IN-A-RECORD"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def invoke(*arguments: str, text: str | None = None) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, list(arguments), input=text)


def flags_of(command: Any, name: str) -> list[str]:
    lines = [f"{name} {' '.join(sorted((*p.opts, *p.secondary_opts)))}" for p in command.params]
    for sub, inner in sorted(getattr(command, "commands", {}).items()):
        lines += flags_of(inner, f"{name} {sub}")
    return sorted(lines)


def test_commands_and_flags_are_those_of_the_golden_file() -> None:
    """A flag is a promise: change the golden file by hand, together with the change log."""
    assert "\n".join(flags_of(get_command(app), "medsft")) + "\n" == (GOLDEN / "flags.txt").read_text()


@pytest.mark.parametrize("command", ["sft", "plan", "rehearse", "tokenize", "inspect"])
def test_every_option_of_a_run_is_a_flag(command: str) -> None:
    known = {opt for p in get_command(app).commands[command].params for opt in p.opts}  # type: ignore[attr-defined]
    assert {f"--{name}" for name in field_types(RunConfig)} <= known


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("--loss-mask 0.1", "--loss_mask 0.1"),
        ("--loss-mask=a-b", "--loss_mask=a-b"),
        ("--data a b-c d --val v", "--data a --data b-c --data d --val v"),
        ("--data=a b --seq 3", "--data=a --data b --seq 3"),
        ("--data --seq 3", "--data --seq 3"),
        ("--no-autoaccept-iters -y RUN-NAME", "--no_autoaccept_iters -y RUN-NAME"),
        ("x -- --loss-mask --data a b", "x -- --loss-mask --data a b"),
        ("--size -1", "--size -1"),
    ],
)
def test_dashes_and_several_values(typed: str, understood: str) -> None:
    assert normalize(typed.split()) == understood.split()


def test_defaults_then_file_then_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr("medsft.core.cluster.scripts.node_commands", lambda config, settings: seen.append(config) or [])
    Path("run.toml").write_text('[training]\nlr = 1e-4\nepochs = 5\n[data]\ndata = ["x.jsonl"]\nretokenize = true\n')
    flags = ("--epochs", "2", "--run-name", "r", "--data", "a", "b", "--no_retokenize")
    assert invoke("sft", "--config", "run.toml", *flags, "--print_commands").exit_code == 0
    assert seen == [RunConfig(run_name="r", lr=1e-4, epochs=2.0, data=(Path("a"), Path("b")))]


def test_all_problems_of_flags_at_once() -> None:
    result = invoke("plan", "--seq", "1", "--loss_mask", "3", "--template", "chatlm", "--data", "none.jsonl")
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    for words in (
        "--seq: 1",
        "--loss_mask: 3",
        "`chatml`",
        "--run_name: a name",
        "unknown checkpoint `baseline`",
    ):
        assert words in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("sft", "--no-such-flag"),
        ("nonsense",),
        ("watch",),
        ("watch", "no-run"),
        ("plan", "--epochs", "many"),
        *(
            ("plan", "--run_name", "x", f"--{name}", value)
            for name in ("lr", "epochs", "size")
            for value in ("nan", "inf", "-inf")
        ),
        ("convert", ".", "out", "--to", "hf", "--norm_eps", "nan"),
        ("convert", ".", "out", "--to", "hf", "--rope_theta", "inf"),
        ("convert", ".", "out", "--to", "megatron", "--tp", "0"),
        ("checkpoints", "add", "name", "nan", "."),
        ("checkpoints", "add", "name", "inf", "."),
        ("plan", "--config", "none.toml"),
        ("plan", "--settings", "none.toml"),
        ("checkpoints", "add", "name", "large", "."),
        ("checkpoints", "remove", "name", "7"),
        ("convert", ".", "out", "--to", "onnx"),
        ("wizard",),
    ],
)
def test_wrong_usage_exits_2_with_a_message(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError([Problem("--x", "is wrong", "Do this.")]), 2),
        (DataError("bad", hint="Do this."), 3),
        (MismatchError("bad", hint="Do this."), 4),
        (LaunchError("bad", hint="Do this."), 5),
        (TrainingError("bad", hint="Do this."), 6),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(monkeypatch: pytest.MonkeyPatch, error: MedsftError, code: int) -> None:
    monkeypatch.setattr("medsft.core.settings.load_settings", _raise(error))
    result = invoke("checkpoints", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"medsft: {error}\n")
    assert "Traceback" in invoke("checkpoints", "list", "--debug").stderr


def test_a_bug_shows_no_record_text_without_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsft.core.settings.load_settings", _raise(KeyError(SECRET)))
    result = invoke("checkpoints", "list")
    assert result.exit_code == ExitCode.TRAINING
    assert SECRET not in result.output
    assert re.fullmatch(r"medsft: this is a bug in medsft: KeyError at test_app\.py:\d+\. .*--debug.*\n", result.stderr)
    assert SECRET in invoke("--debug", "checkpoints", "list").stderr


def _raise(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_without_a_terminal_no_command_is_help() -> None:
    result = invoke()
    assert result.exit_code == 0
    assert "Usage: medsft" in result.stdout


def test_version_and_help_are_results() -> None:
    assert re.fullmatch(r"medsft \d+\.\d+\.\d+\n", invoke("--version").stdout)
    assert "--loss_mask" in invoke("sft", "--help").stdout


@pytest.mark.parametrize(
    ("typed", "accepted"), [("\n", 120), ("Y\n", 120), ("yes\n", 120), ("50\n", 50), ("what?\n0\n-3\n7\n", 7), ("y", 120)]
)
def test_the_confirmation_takes_its_answer_from_a_pipe(monkeypatch: pytest.MonkeyPatch, typed: str, accepted: int) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert confirm_iterations(120) == accepted


def test_no_ends_the_command_and_the_end_of_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    with pytest.raises(typer.Exit) as left:
        confirm_iterations(120)
    assert left.value.exit_code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("what?\n"))
    with pytest.raises(ConfigError, match="--no_autoaccept_iters: the input ended"):
        confirm_iterations(120)


def test_checkpoints_and_datasets_from_empty_to_removed() -> None:
    model = Path("model")
    model.mkdir()
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128}
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "num_attention_heads": 4}))
    tiny.write_weights(model)
    assert invoke("checkpoints", "add", "mine", "0.0001", "model").exit_code == 0
    assert invoke("datasets", "add", "set", "12").exit_code == 0
    [entry] = json.loads(invoke("checkpoints", "list", "--json").stdout)
    assert (entry["name"], entry["size"], Path(entry["path"])) == ("mine", 0.0001, model.absolute())
    assert "mine" in invoke("checkpoints", "list").stdout
    assert json.loads(invoke("datasets", "list", "--json").stdout) == {"set": {"n_docs": 12}}
    [found] = json.loads(invoke("checkpoints", "scan", ".", "--json").stdout)
    assert (found["name"], found["kind"]) == ("model", "hf")
    assert invoke("checkpoints", "remove", "mine", "0.0001").exit_code == 0
    assert invoke("datasets", "remove", "set").exit_code == 0
    assert json.loads(invoke("checkpoints", "list", "--json").stdout) == []


def test_a_size_that_is_not_the_model_s_is_refused_and_a_scan_adds_once() -> None:
    model = Path("llama-70b")
    model.mkdir()
    config = {"model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512}
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "num_attention_heads": 4}))
    tiny.write_weights(model)
    refused = invoke("checkpoints", "add", "big", "70", "llama-70b")
    assert refused.exit_code == ExitCode.USAGE
    assert "70 (1e9 parameters) is not the size of llama-70b, which has 0.00182" in refused.stderr
    for told in ("", "is in", "is in"):
        result = invoke("checkpoints", "scan", ".", "--add")
        assert told in result.stderr
        [entry] = json.loads(invoke("checkpoints", "list", "--json").stdout)
        assert (entry["name"], entry["size"]) == ("llama", 0.00182)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "./model", "models/x/y"])
def test_a_path_or_a_name_of_the_hub_for_a_checkpoint_says_what_to_do(name: str) -> None:
    Path("model").mkdir()
    result = invoke("plan", "--checkpoint", name, "--size", "8", "--run_name", "r", "--data", "d.jsonl")
    assert result.exit_code == ExitCode.USAGE
    assert f"--checkpoint: `{name}` is not the name of an entry" in result.stderr
    assert "medsft checkpoints add NAME" in " ".join(result.stderr.split())
    assert ("medsft downloads nothing" in result.stderr) == name.startswith("meta")
    if name.startswith("meta"):
        added = invoke("checkpoints", "add", "llama", "8", name)
        assert added.exit_code == ExitCode.USAGE
        assert "medsft downloads nothing" in added.stderr


def test_a_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert normalize(["export", "r", "--to=~/m", "~/x", "--question_key", "a~/b"]) == [
        *("export", "r", f"--to={tmp_path}/m", f"{tmp_path}/x", "--question_key", "a~/b")
    ]
    config = from_mapping({"data": ["~/a.jsonl"], "save_checkpoint_dir": "~/runs", "run_name": "~/x"})
    assert (config.data, config.save_checkpoint_dir, config.run_name) == ((tmp_path / "a.jsonl",), tmp_path / "runs", "~/x")


def test_a_checkpoint_that_is_none_is_not_added() -> None:
    Path("empty").mkdir()
    assert invoke("checkpoints", "add", "mine", "7", "empty").exit_code == ExitCode.MISMATCH
    assert not Path("medsft.toml").exists()


def test_commands_for_each_node_and_for_slurm() -> None:
    flags = ("sft", "--run_name", "r", "--nodes", "3", "--lr", "1e-4", "--settings", "my settings.toml")
    lines = invoke(*flags, "--addr", "n0", "--print_commands").stdout.splitlines()
    common = "medsft sft --run_name r --lr 0.0001 --nodes 3"
    assert lines == [
        f"{common} --addr n0 --settings 'my settings.toml'",
        f"{common} --rank 1 --addr n0 --settings 'my settings.toml'",
        f"{common} --rank 2 --addr n0 --settings 'my settings.toml'",
    ]
    script = invoke(*flags, "--slurm").stdout
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert "#SBATCH --nodes=3" in script
    assert '--rank "$SLURM_NODEID" --addr "$MEDSFT_ADDR"' in script
    assert "--addr ADDRESS_OF_NODE_0" in invoke(*flags, "--print_commands").stdout
    assert invoke("sft", "--nodes", "3", "--print_commands").exit_code == ExitCode.USAGE


def make_run(folder: Path, *events: tuple[str, dict[str, Any]]) -> RunDir:
    run = RunDir(folder)
    run.create("{}")
    writer = EventWriter(run.events_path)
    for kind, data in events:
        writer.write(kind, **data)  # type: ignore[arg-type]
    writer.close()
    return run


STARTED = ("run_started", {"iteration": 0, "total": 10})
STEP = ("step", {"iteration": 3, "total": 10, "loss": 1.5, "tokens": 7})


def test_runs_lists_states_and_watch_prints_lines_or_json() -> None:
    make_run(Path("runs/one-a"), STARTED, STEP, ("finished", {"iteration": 10, "export": "model"}))
    make_run(Path("runs/one-b"), STARTED, STEP)
    rows = {row["name"]: row for row in json.loads(invoke("runs", "--json").stdout)}
    assert (rows["one-a"]["state"], rows["one-b"]["state"]) == ("finished", "lost")
    assert rows["one-b"]["loss"] == 1.5
    assert "one-a  finished" in invoke("runs").stdout
    lines = invoke("watch", "one-b", "--plain").stdout.splitlines()
    assert len(lines) == 2
    assert "loss 1.5" in lines[1]
    events = [json.loads(line) for line in invoke("watch", "b", "--json").stdout.splitlines()]
    assert [event["kind"] for event in events] == ["run_started", "step"]
    assert invoke("watch", "one").exit_code == ExitCode.USAGE
    assert invoke("stop", "one-a").exit_code == ExitCode.LAUNCH


@pytest.mark.parametrize("arguments", [(), ("--plain",), ("--json",), ("--sizes",)])
def test_runs_is_a_screen_where_one_can_be_shown(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    shown: list[str] = []
    monkeypatch.setattr("medsft.tui.app.run_app", lambda start, **_: shown.append(start) or 0)
    monkeypatch.setenv("TEXTUAL_DRIVER", "a.browser:Driver")
    assert invoke("runs", *arguments).exit_code == 0
    assert shown == ([] if arguments else ["runs"])


@pytest.mark.parametrize(("named", "view"), [((), "runs"), (("one-a",), "watch")])
def test_serve_offers_the_runs_or_a_monitor(monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...], view: str) -> None:
    server = pytest.importorskip("medsft.tui.browser.server")
    run = make_run(Path("runs/one-a"), STARTED)
    commands: list[str] = []
    monkeypatch.setattr(server.BrowserServer, "serve", lambda self: commands.append(self.command))
    assert invoke("serve", *named).exit_code == 0
    words = shlex.split(commands[0])
    assert words[0] == "exec"  # no shell stays between the server and the app
    assert words[2:5] == ["-m", "medsft", view]
    assert (str(run.path.resolve()) in words) == bool(named)


@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        (("finished", {"iteration": 10, "export": "the/model"}), 0, "the/model"),
        (("stopped", {"iteration": 3}), 0, "medsft resume"),
        (("failed", {"reason": "The loss is not finite.", "remedy": "Lower --lr.", "exit_code": 6}), 6, "Lower --lr."),
        (("failed", {"reason": "Node 1 did not come.", "remedy": "", "exit_code": 5}), 5, "Node 1"),
        (STEP, 6, "without reporting an error"),
    ],
)
def test_the_exit_code_is_that_of_the_run(
    capsys: pytest.CaptureFixture[str], last: tuple[str, dict[str, Any]], code: int, words: str
) -> None:
    run = make_run(Path("runs/r"), STARTED, last)
    ended = 0
    try:
        progress.run_in_foreground(run, after=-1, plain=True)
    except typer.Exit as left:
        ended = left.exit_code
    assert ended == code
    assert words in capsys.readouterr().err


def test_ctrl_c_asks_once_to_stop_and_then_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/r"), STARTED)
    monkeypatch.setattr(RunDir, "alive", lambda self, node=0: True)
    before = signal.getsignal(signal.SIGINT)

    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        while not run.requested("stop"):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Timer(0.1, press_twice).start()
    with pytest.raises(typer.Exit) as left:
        progress.run_in_foreground(run, after=-1, plain=True)
    assert left.value.exit_code == progress.INTERRUPTED
    assert run.requested("stop")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_resumed_run_shows_only_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(Path("runs/r"), STARTED, STEP, ("stopped", {"iteration": 3}))
    make_run_again = EventWriter(run.events_path)
    make_run_again.write("finished", iteration=10, export="")
    make_run_again.close()
    progress.run_in_foreground(run, after=2, plain=True)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["sft"], ["checkpoints", "list"]])
def test_help_names_no_type_for_options_that_take_no_value(words: list[str]) -> None:
    shown = invoke(*words, "--help").output
    assert "--help" in shown
    assert "<bool>" not in shown


def test_a_rehearsal_does_as_many_iterations_as_its_help_and_the_readme_say() -> None:
    word = {5: "five", 6: "six", 7: "seven"}[ITERATIONS]
    assert f"{word} iterations of this very run" in (cli_train.rehearse.__doc__ or "").lower()
    assert f"does {word} of" in (ROOT / "README.md").read_text(encoding="utf-8")
