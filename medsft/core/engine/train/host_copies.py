"""Copies of a rank's shards in the memory of the host, from which a checkpoint is written while training goes on.

On a GPU a thread copies on a stream of its own, into pinned memory that is kept from one save to the next: the card then copies
at the full rate of the bus beside its computing. Two things keep the copy true to its iteration: the stream begins behind all
that was started before, and the optimizer does not write before the copy is done (`HostCopies.wait`). On a CPU the copy is made
at once. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

_PLAIN = StagingOptions(use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False)
_PINNED = StagingOptions(use_pinned_memory=True, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=True)

Content = Mapping[str, Any]
"""What a checkpoint holds: tensors under their names, in mappings of mappings."""


class HostCopies:
    """The copies of one rank, of one save at a time: the next begins when the one before is written."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: DefaultStager | None = None
        self._can_pin = True
        self._copying: Future[Content] | None = None
        if device.type == "cuda":
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copying")
            self._stream = torch.cuda.Stream(device)

    @property
    def are_kept(self) -> bool:
        """Whether the memory of an earlier copy is there for the next one."""
        return self._kept is not None

    def begin(self, content: Content, *, pinned: bool) -> Future[Content]:
        """Start to copy, and return what will be the copy; on a CPU it is made when this returns.

        `pinned` asks a GPU for memory that is kept. Where the system does not pin so much, the copy goes the slower way.
        """
        if self._device.type != "cuda":
            made: Future[Content] = Future()
            made.set_result(_plain_copy(content))
            return made
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # the last update may not be done yet
        self._copying = self._thread.submit(self._copy, content, pinned)
        return self._copying

    def wait(self) -> None:
        """Return when nothing that was copied from is read any more. What went wrong stands in the future of the copy."""
        if self._copying is not None:
            wait([self._copying])
            self._copying = None

    def _copy(self, content: Content, pinned: bool) -> Content:
        with torch.cuda.stream(self._stream):
            if not (pinned and self._can_pin):
                return _plain_copy(content)
            if self._kept is None:
                self._kept = DefaultStager(_PINNED)
            try:
                return self._kept.stage(content)  # type: ignore[arg-type, return-value]
            except RuntimeError:  # what CUDA raises where memory cannot be pinned
                self._kept, self._can_pin = None, False
                return _plain_copy(content)


def _plain_copy(content: Content) -> Content:
    stager = DefaultStager(_PLAIN)
    try:
        return stager.stage(content)  # type: ignore[arg-type, return-value]
    finally:
        stager.close()  # it refers to itself, and would keep the copy until Python looks for such circles
