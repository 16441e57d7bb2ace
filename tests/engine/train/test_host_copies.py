"""Copies that a save is written from: what they hold, and in which order a GPU makes them. torch's CUDA is played by a log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from medsft.core.engine.parallel.master_weights import MasterWeights
from medsft.core.engine.train import async_save, host_copies
from medsft.core.engine.train.async_save import Saver
from medsft.core.engine.train.checkpoint import TrainState
from medsft.core.engine.train.host_copies import HostCopies
from medsft.core.planning.layout import Layout
from medsft.core.run.rundir import RunDir

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Card:
    """What a GPU is told to do, in order. Copies wait until `free` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.free, self.pins = threading.Event(), True
        self.free.set()
        self.stagers = 0
        monkeypatch.setattr(torch.cuda, "Stream", self._stream)
        monkeypatch.setattr(torch.cuda, "stream", self._inside)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "training")
        plain, card = host_copies.DefaultStager, self

        class Stager:
            def __init__(self, options: Any) -> None:
                self.pinned, self.inner = options.use_pinned_memory, plain(host_copies._PLAIN)
                card.stagers += 1

            def stage(self, content: Any) -> Any:
                card.free.wait(10)
                if self.pinned and not card.pins:
                    raise RuntimeError("CUDA error: cannot pin")
                card.log.append("copied to pinned memory" if self.pinned else "copied")
                return self.inner.stage(content)

            def close(self) -> None:
                self.inner.close()

        monkeypatch.setattr(host_copies, "DefaultStager", Stager)

    def _stream(self, _: torch.device) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.log.append(f"behind {other}"))

    @contextmanager
    def _inside(self, _: object) -> Iterator[None]:
        yield


def content(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((3,), value)}}


def test_a_cpu_copies_at_once() -> None:
    copies, source = HostCopies(CPU), content(1.0)
    copy = copies.begin(source, pinned=True)
    assert copy.done()
    source["model"]["w"].zero_()
    assert copy.result()["model"]["w"].tolist() == [1.0] * 3
    copies.wait()
    assert not copies.are_kept


def test_a_gpu_copies_behind_the_last_update_and_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    copies = HostCopies(GPU)
    for value in (1.0, 2.0):
        copy = copies.begin(content(value), pinned=True)
        copies.wait()
        assert copy.result()["model"]["w"].tolist() == [value] * 3
    assert card.log == ["behind training", "copied to pinned memory"] * 2
    assert copies.are_kept
    assert card.stagers == 1


@pytest.mark.parametrize("pinned", [True, False])
def test_memory_that_is_not_pinned(monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    card = Card(monkeypatch)
    card.pins = False
    copies = HostCopies(GPU)
    for _ in range(2):
        assert copies.begin(content(1.0), pinned=pinned).result()["model"]["w"].tolist() == [1.0] * 3
    assert card.log == ["behind training", "copied"] * 2
    assert not copies.are_kept
    assert card.stagers == (3 if pinned else 2), "pinning is tried once"


def saver(tmp_path: Path, device: torch.device) -> tuple[Saver, nn.Parameter, torch.optim.Optimizer]:
    run = RunDir(tmp_path / "run")
    run.make_folders()
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    mesh = SimpleNamespace(
        device=device, layout=Layout(), reports=True, rank=0, gather=lambda value: [value], sum=lambda values: values
    )
    made = Saver(run, cast(Any, mesh), MasterWeights({"w": weight}, {}), optimizer, model=cast(Any, None), identity="x")
    return made, weight, optimizer


def test_the_optimizer_waits_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    made, weight, optimizer = saver(tmp_path, GPU)
    monkeypatch.setattr(async_save, "tensors", lambda *_: {"model": {"w": weight.detach()}})
    monkeypatch.setattr(async_save, "random_state", lambda _: {})
    monkeypatch.setattr(Saver, "_memory_allows", lambda _: (True, True))
    written: list[Any] = []
    monkeypatch.setattr(async_save.dcp, "save", lambda state, **_: written.append(state["model"]["w"].tolist()))
    card.free.clear()
    made.begin(TrainState(iteration=1))
    weight.grad = torch.ones(4)
    threading.Timer(0.2, card.free.set).start()
    optimizer.step()
    assert card.log == ["behind training", "copied to pinned memory"], "before the step, which has ended"
    assert weight.tolist() == [0.0] * 4
    assert made._writing is not None
    made._writing.written.result(10)
    assert written == [[1.0] * 4]
    assert made._writing.stalled > 0.1


@pytest.mark.parametrize(
    ("free", "ranks", "expected"),
    [
        (71, 1, (False, False)),
        (73, 1, (True, False)),
        (97, 1, (True, True)),
        (97, 2, (False, False)),
        (200, 2, (True, True)),
    ],
)
def test_memory_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, ranks: int, expected: tuple[bool, bool]
) -> None:
    """A copy of 48 bytes: weights and two moments. The ranks of a node share what is free."""
    made = saver(tmp_path, CPU)[0]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(async_save, "free_memory", lambda: free)
    assert made._memory_allows() == expected


def test_memory_that_is_kept_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    made = saver(tmp_path, GPU)[0]
    made._copies.begin(content(1.0), pinned=True).result()
    made._mesh = cast(Any, SimpleNamespace(device=CPU, layout=Layout(), sum=lambda values: values))
    monkeypatch.setattr(async_save, "free_memory", lambda: 0)
    assert made._memory_allows() == (True, True)
