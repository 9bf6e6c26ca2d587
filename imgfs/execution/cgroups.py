"""The cgroups of a container: whether the kernel killed in them for want of memory, and their end.

Either hierarchy, and both at once (cgroups(7)): v2 counts kills in memory.events, v1 in memory.oom_control.
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
    """The name of a container's cgroup below the root of each hierarchy, by the key of its snapshot.

    Ids may be the same in two state directories, keys are not.
    """
    return f"imgfs-{key}"


def oom_kills(key: str) -> int:
    """How many of a container's processes the kernel killed for want of memory."""
    return max((_kills(group / name) for group in _groups(key) for name in _COUNTERS), default=0)


def kill_cgroups(key: str) -> None:
    """Kill what is left in a container's cgroups and remove them. What does not end within seconds is left. Blocks."""
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
    """Where hierarchies are mounted."""
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
    """Remove it and those below it, which takes that they are empty; tell whether that is so."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
