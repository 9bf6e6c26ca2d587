"""Whether the kernel killed something in a container for want of memory: what its cgroup counted.

cgroup v2 says so in memory.events, v1 in memory.oom_control; a host that has both mounted has memory in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_COUNTERS = ("memory.events", "memory.oom_control")
_MEMBERSHIP = "/proc/{pid}/cgroup"


def oom_counter(pid: int) -> Path | None:
    """The file that counts for the cgroup of a living process; None where this host has none."""
    for directory in _directories(pid):
        for name in _COUNTERS:
            if (directory / name).exists():
                return directory / name
    return None


def oom_kills(counter: Path | None) -> int:
    """How many were killed so far."""
    if counter is not None:
        with suppress(OSError, ValueError):
            for line in counter.read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0


def _directories(pid: int) -> Iterator[Path]:
    """Where the process's cgroups are that may count memory, by cgroups(7)."""
    places = dict(_hierarchies())
    with suppress(OSError):
        for line in Path(_MEMBERSHIP.format(pid=pid)).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                if controller in places:
                    yield places[controller] / path.lstrip("/")


def _hierarchies() -> Iterator[tuple[str, Path]]:
    """Controllers (`""` for v2) and where their hierarchy is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        place = Path(left.split(" ")[4])
        if kind == "cgroup2":
            yield "", place
        elif kind == "cgroup" and "memory" in options.split(" ")[-1].split(","):
            yield "memory", place
