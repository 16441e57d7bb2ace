"""A resume says when it computes with something else than before, and does not start when only room is missing."""

from __future__ import annotations

from typing import Any

import pytest

from medsft.core.engine.kernels.cpu.compiled import Compiled
from medsft.core.engine.train import arithmetic
from medsft.errors import LaunchError


class _Alone:
    def gather(self, value):
        return [value]


ALONE: Any = _Alone()


@pytest.fixture
def compiled(monkeypatch):
    def give(identity, disk=""):
        monkeypatch.setattr(arithmetic.torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(arithmetic.cpu, "compilation", lambda: Compiled(None, identity, disk))

    return give


def test_the_same_and_runs_of_before_there_was_a_record(compiled):
    compiled("ours")
    assert arithmetic.check_arithmetic(ALONE, arithmetic.arithmetic()) == []
    assert arithmetic.check_arithmetic(ALONE, None) == []


def test_other_kernels_are_said(compiled):
    compiled("ours")
    before = arithmetic.arithmetic()
    compiled("")
    (line,) = arithmetic.check_arithmetic(ALONE, before)
    assert "no longer the uninterrupted run bit for bit (kernels of medsft: ours before, none now)" in line


def test_kernels_that_only_lack_room(compiled):
    compiled("ours")
    before = arithmetic.arithmetic()
    compiled("", "The disk is full: /tmp has 0 B free of 1 MiB; /tmp cannot be written.")
    with pytest.raises(LaunchError, match="The disk is full: /tmp"):
        arithmetic.check_arithmetic(ALONE, before)
    (line,) = arithmetic.check_arithmetic(ALONE, None)
    assert "ours cannot be compiled. The disk is full: /tmp" in line
