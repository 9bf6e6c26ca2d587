"""The cgroups of a container: out-of-memory kills, and removal.

Supports both hierarchies, also mounted at once (cgroups(7)). v2 counts kills in memory.events, v1 in
memory.oom_control.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_COUNTERS = ("memory.events", "memory.oom_control")
_KINDS = ("cgroup", "cgroup2")
_ENDING_SECONDS = 5.0
_POLL = 0.01


def cgroup_name(key: str) -> str:
    """Return the name of a container's cgroup, below the root of each hierarchy, for the key of its snapshot.

    Two state directories may have containers of the same ID, but never snapshots of the same key.
    """
    return f"imgfs-{key}"


def oom_kills(key: str) -> int:
    """Return how many processes of a container the kernel killed because memory ran out."""
    return max((_kills(group / name) for group in _groups(key) for name in _COUNTERS), default=0)


def kill_cgroups(key: str) -> None:
    """Kill the remaining processes in a container's cgroups and remove the cgroups. Blocks for up to five seconds.

    A cgroup that is not empty by then is left.
    """
    deadline = time.monotonic() + _ENDING_SECONDS
    for group in _groups(key):
        while not _is_removed(group) and time.monotonic() < deadline:
            for pid in _members(group):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL)


def _groups(key: str) -> Iterator[Path]:
    for root in _roots():
        group = root / cgroup_name(key)
        if group.is_dir():
            yield group


def _roots() -> Iterator[Path]:
    """Yield the mountpoints of cgroup hierarchies."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] in _KINDS:
            yield Path(left.split(" ")[4])


def _kills(counter: Path) -> int:
    with suppress(OSError, ValueError):
        for line in counter.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return 0


def _members(group: Path) -> list[int]:
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        with suppress(OSError):
            found += map(int, Path(directory, "cgroup.procs").read_text().split())
    return found


def _is_removed(group: Path) -> bool:
    """Remove a cgroup and the cgroups below it.

    Return whether they are gone; a cgroup with processes cannot be removed.
    """
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
