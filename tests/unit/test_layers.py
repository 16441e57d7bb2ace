"""What linters cannot see: that no light module loads torch by a detour, that files stay short, and who is linted when."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from kept import ROOT as REPOSITORY

import medsft

ROOT = Path(medsft.__file__).parent
MOST_LINES = 400


def light_modules() -> list[str]:
    """From the files, because walking the packages would import those of the engine."""
    paths = [path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(n for n in names if not n.startswith("medsft.core.engine") and n != "medsft.__main__")


def test_no_module_outside_the_engine_loads_torch() -> None:
    """All of them in one fresh interpreter; what a single command loads is in `test_imports`."""
    modules = light_modules()
    assert {"medsft.cli.train", "medsft.core.planning.planner", "medsft.core.cluster.supervisor", "medsft.tui.app"} <= {
        *modules
    }
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_files_stay_short() -> None:
    paths = [path for folder in ("medsft", "tests", "bench", "examples") for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(paths) > 300
    lines = {path.relative_to(REPOSITORY): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    [target] = re.findall(r"^lint: venv\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    linted = [line.strip().replace("$(BIN)", ".venv/bin") for line in target.splitlines()]
    hooks = re.findall(r"entry: (.*)", (REPOSITORY / ".pre-commit-config.yaml").read_text())
    assert [hook.replace(" --force-exclude", "") for hook in hooks] == [command.removesuffix(" .") for command in linted]
