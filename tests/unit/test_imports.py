"""What is imported when: `medsft` starts fast, and only engine processes load torch. Each case is a fresh interpreter."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import medsft

HEAVY = ("torch", "transformers", "textual", "numpy", "tokenizers", "sentencepiece", "tomlkit", "gguf")
ROOT = Path(medsft.__file__).parent


def loaded_after(code: str, *names: str) -> set[str]:
    """Run code in a fresh interpreter and return which of the modules it has loaded."""
    report = f"import atexit, sys; atexit.register(lambda: print('LOADED', *[m for m in {names!r} if m in sys.modules]))\n"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", report + code], capture_output=True, text=True, timeout=120, cwd="/")
    print(f"{time.perf_counter() - began:.2f} s for {code!r}")
    assert "LOADED" in done.stdout, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def run_command(*arguments: str) -> str:
    return f"import sys; sys.argv = ['medsft', *{arguments!r}]; from medsft.cli import main; main()"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import medsft", set()),
        (run_command("--help"), set()),
        (run_command("sft", "--help"), set()),
        (run_command("--version"), set()),
        (run_command("runs"), set()),
        (run_command("checkpoints", "list"), set()),
    ],
)
def test_cheap_commands_load_nothing_heavy(code: str, allowed: set[str]) -> None:
    assert loaded_after(code, *HEAVY) <= allowed


@pytest.mark.parametrize(
    "code",
    [
        run_command("plan", "--run_name", "x", "--data", "none.jsonl"),
        "import medsft; medsft.plan, medsft.run, medsft.tokenize, medsft.RunDir, medsft.open_tokenized",
        "import medsft.tui.app",
    ],
)
def test_only_engine_processes_load_torch(code: str) -> None:
    assert loaded_after(code, "torch", "transformers") == set()


def test_import_medsft_loads_no_part_of_it() -> None:
    assert loaded_after("import medsft", "medsft.core", "medsft.errors", "typer", "rich") == set()


def test_public_names_exist_and_are_typed() -> None:
    typed = dict(re.findall(r"    from medsft\.\S+ import (\w+) as (\w+)", (ROOT / "__init__.py").read_text()))
    assert {*typed.values(), "__version__"} == set(medsft.__all__)
    for name in medsft.__all__:
        assert getattr(medsft, name) is not None
    assert set(medsft.__all__) <= set(dir(medsft))
    assert (ROOT / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        medsft.nonsense  # noqa: B018
