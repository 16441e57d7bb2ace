from __future__ import annotations

import shutil
import subprocess

import pytest
import small_disks

from medsft.core.engine.kernels.cpu import compiled
from medsft.core.engine.kernels.cpu.compiled import compile_or_load

pytestmark = pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="needs a C compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@pytest.fixture
def compilations(monkeypatch):
    """The commands that were run."""
    commands, run = [], subprocess.run
    monkeypatch.setattr(compiled.subprocess, "run", lambda command, **more: (commands.append(command), run(command, **more))[1])
    return commands


def kept(tmp_path):
    return list((tmp_path / "cache" / "medsft" / "kernels").glob("*.so"))


def test_a_library_is_compiled_once_and_kept(source, compilations, tmp_path):
    assert compile_or_load([source]).library.answer() == 42
    assert compile_or_load([source]).library.answer() == 42
    assert len(compilations) == 1
    assert len(kept(tmp_path)) == 1


def test_other_sources_headers_macros_and_processors_have_another_library(source, compilations, tmp_path, monkeypatch):
    assert compile_or_load([source]).library.answer() == 42
    (tmp_path / "more.h").write_text("/* a header */\n")
    assert compile_or_load([source]).library.answer() == 42
    source.write_text("int answer(void) { return 43; }\n")
    assert compile_or_load([source]).library.answer() == 43
    monkeypatch.setattr(compiled, "processor", lambda: "another")
    assert compile_or_load([source]).library.answer() == 43
    source.write_text("#ifdef TWICE\nint answer(void) { return 86; }\n#else\nint answer(void) { return 43; }\n#endif\n")
    assert compile_or_load([source], ["TWICE"]).library.answer() == 86
    assert compile_or_load([source]).library.answer() == 43
    assert len(compilations) == len(kept(tmp_path)) == 6


def test_a_damaged_library_is_compiled_again(source, compilations, tmp_path):
    compile_or_load([source])
    [library] = kept(tmp_path)
    library.unlink()  # and not written over: it is mapped
    library.write_bytes(b"\x7fELF cut off")
    assert compile_or_load([source]).library.answer() == 42
    assert len(compilations) == 2
    assert library.stat().st_size > 100


def test_one_changed_bit_is_compiled_again(source, compilations, tmp_path):
    compile_or_load([source])
    [library] = kept(tmp_path)
    content = bytearray(library.read_bytes())
    content[-5] ^= 1
    library.unlink()
    library.write_bytes(content)
    assert compile_or_load([source]).library.answer() == 42
    assert len(compilations) == 2


def test_a_full_folder_for_temporary_files_is_no_reason_for_other_kernels(source, compilations, tmp_path, monkeypatch):
    with small_disks.mounted(tmp_path / "disk", "size=64k") as folder:
        small_disks.fill(folder)
        monkeypatch.setattr(compiled.tempfile, "tempdir", str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))
        assert compile_or_load([source]).library.answer() == 42
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        found = compile_or_load([source])
        assert found.library is None
        assert found.disk.startswith(f"The disk is full: {folder} has 0 B free")


def test_where_nothing_can_be_kept_it_is_compiled_each_time(source, compilations, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert compile_or_load([source]).library.answer() == 42
    assert compile_or_load([source]).library.answer() == 42
    assert len(compilations) == 2


def test_there_is_none_without_a_compiler_or_for_a_wrong_source(source, tmp_path, monkeypatch):
    source.write_text("int answer(void) { return }\n")
    assert compile_or_load([source]).library is None
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert compile_or_load([source]).library is None
    assert compile_or_load([tmp_path / "missing.c"]).library is None


def test_the_processor_is_described_without_its_speed_of_now():
    assert compiled.processor()
    assert "MHz" not in compiled.processor()
