"""What import-linter cannot see: that no light module loads torch by a detour, and that files stay short."""

from __future__ import annotations

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
