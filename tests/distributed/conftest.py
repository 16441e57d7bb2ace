from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a test once more when a rank died of a segmentation fault, and of nothing else.

    Seen once in several hundred worlds, on a machine with eight times as many busy processes as cores: a native thread of torch
    2.13's gloo backend crashed inside a reduce-scatter. A run of a user restarts from its checkpoint (`--max_restarts`).
    """
    for item in items:
        if "distributed" in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["SIGSEGV"]))
