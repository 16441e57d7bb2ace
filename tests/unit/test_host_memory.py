"""Memory in containers and jobs: what the system's files say, of control groups of both versions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medsft.core import host_memory

GIB = 1 << 30
FILES = {
    "nothing said": ({}, 64, 48),
    "a container": (
        {
            "/sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "/sys/fs/cgroup/memory.current": f"{5 * GIB}\n",
            "/sys/fs/cgroup/memory.stat": f"anon {2 * GIB}\ninactive_file {2 * GIB}\nactive_file 0\n",
        },
        8,
        5,
    ),
    "no limit": ({"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": "1\n"}, 64, 48),
    "a job of Slurm": (
        {
            "/proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n",
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.max": f"{16 * GIB}\n",
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.current": f"{1 * GIB}\n",
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/memory.max": "max\n",
        },
        16,
        15,
    ),
    "version 1": (
        {
            "/proc/self/cgroup": "9:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "/sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {1 * GIB}\n",
        },
        4,
        2,
    ),
    "version 1 without a limit": ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64, 48),
    "more used than allowed": (
        {"/sys/fs/cgroup/memory.max": f"{GIB}\n", "/sys/fs/cgroup/memory.current": f"{2 * GIB}\n"},
        1,
        0,
    ),
    "a path out of the name space": (
        {"/proc/self/cgroup": "0::/../../job\n", "/sys/fs/cgroup/job/memory.max": f"{2 * GIB}\n"},
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", list(FILES))
def test_memory(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files, usable, free = FILES[name]
    monkeypatch.setattr(host_memory, "text_of", lambda path: files.get(path, ""))
    machine = SimpleNamespace(total=64 * GIB, available=48 * GIB)
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: machine)
    assert host_memory.usable_memory() == usable * GIB
    assert host_memory.free_memory() == free * GIB
