"""How a process that was forked elsewhere becomes one that another process might have forked.

What can be taken over is: cgroups, limits, niceness (also on disks), login, what the kernel thinks of killing it. All
else that a child inherits has to be the same already: namespaces, root, users, capabilities, scheduling, personality,
blocked signals, and what confines it.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator

from imgfs.execution.forwarding import FORWARDED
from imgfs.kernel.proc import read_of, write_to
from imgfs.kernel.process import io_priority, set_io_priority

_STATUS = (
    *(b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb"),
    *(b"SigBlk", b"NoNewPrivs", b"Seccomp", b"Seccomp_filters", b"Cpus_allowed", b"Mems_allowed"),
    *(b"Speculation_Store_Bypass", b"SpeculationIndirectBranch", b"THP_enabled"),  # as by prctl(2)
)
"""Lines of proc_pid_status(5)."""
_LIMITS = {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
_GROUPS = (b"cgroup", b"cgroup2")
_TAKEN_OVER = ("oom_score_adj", "loginuid", "timerslack_ns")
"""Of whom the kernel is to be rid first, whose login audit(8) tells of, how late timers may be."""
_TOLD = ("attr/current", "personality", "coredump_filter", "cgroup")
"""The first is what a security module calls it (AppArmor, SELinux)."""
_IGNORED = b"SigIgn:"
_MOUNT = b"mnt_id:"


def inherit_from(pid: int) -> bool:
    """Whether this process now is as a child of process `pid` would be. Raises OSError where it cannot become so."""
    _join_groups(pid)
    for limit in _LIMITS:
        if (wanted := resource.prlimit(pid, limit)) != resource.getrlimit(limit):
            resource.setrlimit(limit, wanted)
    if (nice := os.getpriority(os.PRIO_PROCESS, pid)) != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if (urgency := io_priority(pid)) != io_priority():
        set_io_priority(urgency)
    for name in _TAKEN_OVER:
        if (theirs := _told(pid, name)) != _told("self", name):
            write_to(f"/proc/self/{name}", theirs)
    return _inherited("self") == _inherited(pid)


def inherit_ignored_signals(pid: int) -> None:
    """Ignore, of the signals that are passed on, those that process `pid` ignores: no other one that a daemon does.

    Raises OSError.
    """
    ignored = _ignored_by(pid)
    for number in FORWARDED:
        begun = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else begun)


def _ignored_by(pid: int) -> set[int]:
    line = next(line for line in read_of(pid, "status").splitlines() if line.startswith(_IGNORED))
    mask = int(line.removeprefix(_IGNORED), 16)
    return {number for number in range(1, mask.bit_length() + 1) if mask >> (number - 1) & 1}


def _inherited(pid: int | str) -> list[object]:
    """What has to be the same."""
    lines = [line for line in read_of(pid, "status").splitlines() if line.partition(b":")[0] in _STATUS]
    spaces = [os.readlink(f"/proc/{pid}/ns/{name}") for name in sorted(os.listdir(f"/proc/{pid}/ns"))]
    policy = os.sched_getscheduler(0 if isinstance(pid, str) else pid)
    return [root_of(pid), lines, spaces, policy, *(_told(pid, name) for name in _TOLD)]


def root_of(pid: int | str) -> tuple[int, int, bytes]:
    """Which directory, in which mount: chroot(2) to a bind of `/` finds the same one without what is mounted there."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        found, lines = os.fstat(root), read_of("self", f"fdinfo/{root}").splitlines()
    finally:
        os.close(root)
    return found.st_dev, found.st_ino, next(line for line in lines if line.startswith(_MOUNT))


def _told(pid: int | str, name: str) -> bytes:
    """A file that not every kernel has."""
    try:
        return read_of(pid, name)
    except OSError:
        return b""


def _join_groups(pid: int) -> None:
    wanted, here = read_of(pid, "cgroup"), read_of("self", "cgroup")
    if wanted == here:
        return
    for line in set(wanted.splitlines()) - set(here.splitlines()):
        _, controllers, path = line.split(b":", 2)
        for place in _places(controllers):
            write_to(os.fsdecode(place + path) + "/cgroup.procs", b"0")


def _places(controllers: bytes) -> Iterator[bytes]:
    """Where the hierarchy of these controllers is mounted, from its root on (cgroups(7)); v2 is that of none."""
    for line in read_of("self", "mountinfo").rstrip(b"\n").split(b"\n"):
        left, _, right = line.partition(b" - ")
        kind, _, options = right.split(b" ", 2)
        fields = left.split(b" ")
        is_it = set(controllers.split(b",")) <= set(options.split(b",")) if controllers else kind == b"cgroup2"
        if kind in _GROUPS and fields[3] == b"/" and is_it:
            yield fields[4]
            return
