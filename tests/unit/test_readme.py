"""README.md is what a newcomer types: its commands parse, its first run and its script work; so do commands of other pages."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import flags_table
import pytest
import tiny
from kept import ROOT
from typer.main import get_command
from typer.testing import CliRunner

from medsft.cli.app import app
from medsft.cli.argv import normalize
from medsft.core.config.check import check
from medsft.core.config.file import load_toml
from medsft.core.config.options import field_types
from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.models import scanning
from medsft.core.planning.folders import export_folder_name
from medsft.core.run.rundir import find_runs
from medsft.core.settings import load_settings
from medsft.errors import ExitCode

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page: (ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in ("adapters", "check", "evaluation", "serving")
}
MODEL = "models/Llama-3.1-8B"
LIGHT = ("checkpoints", "tokenize", "inspect", "plan")


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines(text: str = TEXT) -> list[list[str]]:
    """The words of each `medsft` line in the shell blocks."""
    lines = [shlex.split(line, comments=True) for block in blocks("sh", text) for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "medsft"]


def parsed(words: list[str]) -> dict[str, Any]:
    """Return the values of the innermost command, parsed as the command line does and not run. Raises for a wrong flag."""
    command: Any = get_command(app)
    name, context, rest = "medsft", None, normalize(words)
    while True:
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "commands"):
            return context.params
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_each_command_line_parses(words: list[str]) -> None:
    known = field_types(RunConfig)
    options = {name: value for name, value in parsed(words).items() if name in known and value not in (None, [])}
    assert from_mapping(options)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_other_pages_parse(page: str) -> None:
    lines = command_lines(PAGES[page])
    assert lines
    for words in lines:
        assert parsed([word for word in words if word != "..."]) is not None


def test_commands_and_flags_in_the_text_exist() -> None:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    spans = re.findall(r"`medsft ([^`]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))
    assert len(spans) > 5
    for span in spans:
        name, *words = span.split()
        command = commands.get(name)
        assert command or name == "COMMAND", span
        known = {"--help"} | {opt for p in (command.params if command else ()) for opt in (*p.opts, *p.secondary_opts)}
        if not hasattr(command, "commands"):
            assert {word for word in words if word.startswith("--")} <= known, span


def test_the_tables_of_flags_are_those_of_the_code() -> None:
    """`python tests/flags_table.py` writes them anew."""
    assert flags_table.split(flags_table.PAGE.read_text(encoding="utf-8"))[1].strip() == flags_table.flags_section().strip()


def test_every_exit_code_is_listed() -> None:
    assert [int(number) for number in re.findall(r"^\| (\d) \| ", TEXT, re.MULTILINE)] == [int(code) for code in ExitCode]


def test_linked_files_exist() -> None:
    targets = re.findall(r"\]\(((?!https:)[^)]+)\)", TEXT)
    assert len(targets) > 5
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)
    }
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).is_file(), target


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_and_modules_that_are_named_exist(document: str) -> None:
    """Such as `core/data/template.py`, `engine/formats/` and `planning.order`; folders above may be left out."""
    spans = set(re.findall(r"`([^`\s]+)`", (ROOT / document).read_text(encoding="utf-8")))
    modules = {s for s in spans if re.fullmatch(r"(core|cli|engine|planning|run)\.[a-z_.]+", s)}
    paths = {s for s in spans if re.fullmatch(r"(core|cli|engine|planning|run|tests|medsft|docs|bench)/[\w./]*", s)}
    assert len(modules | paths) > 4
    for name in paths | {module.replace(".", "/") for module in modules}:
        found = [start / f"{name}{end}" for start in (ROOT, ROOT / "medsft", ROOT / "medsft/core") for end in ("", ".py")]
        assert any(path.exists() for path in found), name


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as the README supposes, with a tiny model in the place of the real one."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / MODEL).mkdir(parents=True)
    tiny.write_model(folder / MODEL)
    tiny.write_rows(folder / "train.jsonl", 40)
    tiny.write_rows(folder / "val.jsonl", 11, seed=1)
    settings, run = blocks("toml")
    (folder / "medsft.toml").write_text(settings)
    (folder / "run.toml").write_text(run)
    return folder


def test_the_configuration_files_are_right(project: Path) -> None:
    assert check(load_toml(project / "run.toml")) == []
    settings = load_settings(project / "medsft.toml")
    assert settings.find_checkpoint("llama", 8).path == project / MODEL
    assert settings.expected_documents("triage") == 40


def test_the_folders_of_models_have_the_names_that_the_run_gives_them(project: Path) -> None:
    expected = export_folder_name(load_toml(project / "run.toml"), "llama")
    for text in (TEXT, *PAGES.values()):
        assert set(re.findall(r"runs/(llama-8b-hf-[\w-]+)", text)) <= {expected}
    assert f"cd runs/{expected}\n" in TEXT


def test_the_first_commands_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project / "config"))
    monkeypatch.setattr(scanning, "sizes_agree", lambda *_: True)  # the model that stands in is smaller
    light = [words for words in command_lines() if words[0] in LIGHT]
    assert {words[0] for words in light} == set(LIGHT)
    for words in light:
        result = CliRunner(env={"TERM": "dumb"}).invoke(app, words)
        assert result.exit_code == 0, f"{words}: {result.output}"


@pytest.mark.timeout(280)
def test_the_script_trains_without_a_network_and_leaves_what_is_listed(project: Path) -> None:
    [script] = blocks("python")
    (project / "script.py").write_text(script)
    assert len(script.splitlines()) <= 12
    done = subprocess.run(
        [*offline(), sys.executable, "script.py"],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(project / "config")},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    *steps, model = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in steps] == [1, 2, 3]
    [run] = find_runs(project / "runs")
    assert re.fullmatch(r"llama-8b-tp1-pp1-llama-triage-lora-script", run.path.name)
    folders = (project / "tokenized" / "triage", run.path, Path(model))
    for folder, names in zip(folders, listed_files(), strict=True):
        for name in names:
            assert list(folder.glob(name)), f"{folder} has no {name}"


def offline() -> list[str]:
    """What makes a command see no network but the loopback, where this machine lets us."""
    alone = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        possible = subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    return alone if possible else []


def listed_files() -> list[list[str]]:
    """The names that `What is written where` lists under each of its folders, iterations as a pattern."""
    [block] = blocks("text")
    found: list[list[str]] = []
    for line in block.splitlines():
        if not line.startswith(" "):
            found.append([])
        else:
            names = re.split(r" {3,}", line.strip())[0]
            found[-1] += [re.sub(r"\d{7}/", "*", name) for name in names.split()]
    return [names for names in found if names]
