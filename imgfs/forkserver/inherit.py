"""Gives a child of the fork server the attributes that a child of the calling process would inherit.

The child copies cgroups, resource limits, niceness, I/O priority, audit login UID, OOM score and timer slack. All other
inherited attributes must already be equal: namespaces, root directory, users, capabilities, scheduling, personality,
blocked signals and security confinement.
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
    *(b"Speculation_Store_Bypass", b"SpeculationIndirectBranch", b"THP_enabled"),  # set with prctl(2)
)
"""Lines of proc_pid_status(5)."""
_LIMITS = {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
_GROUPS = (b"cgroup", b"cgroup2")
_COPIED = ("oom_score_adj", "loginuid", "timerslack_ns")
"""OOM score, audit login UID, timer slack."""
_COMPARED = ("attr/current", "personality", "coredump_filter", "cgroup")
"""Files in /proc/PID that must be equal. The first is the label of a security module (AppArmor, SELinux)."""
_IGNORED = b"SigIgn:"
_MOUNT = b"mnt_id:"


def inherit_from(pid: int) -> bool:
    """Copy the attributes of process `pid`. Return whether all other inherited attributes are equal.

    Raises OSError if one cannot be copied.
    """
    _join_cgroups(pid)
    for limit in _LIMITS:
        if (wanted := resource.prlimit(pid, limit)) != resource.getrlimit(limit):
            resource.setrlimit(limit, wanted)
    if (nice := os.getpriority(os.PRIO_PROCESS, pid)) != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if (urgency := io_priority(pid)) != io_priority():
        set_io_priority(urgency)
    for name in _COPIED:
        if (theirs := _read_optional(pid, name)) != _read_optional("self", name):
            write_to(f"/proc/self/{name}", theirs)
    return _attributes("self") == _attributes(pid)


def inherit_ignored_signals(pid: int) -> None:
    """Ignore those forwarded signals that process `pid` ignores, and reset all others, whatever the daemon ignores.

    Raises OSError.
    """
    ignored = _ignored_by(pid)
    for number in FORWARDED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else default)


def _ignored_by(pid: int) -> set[int]:
    line = next(line for line in read_of(pid, "status").splitlines() if line.startswith(_IGNORED))
    mask = int(line.removeprefix(_IGNORED), 16)
    return {number for number in range(1, mask.bit_length() + 1) if mask >> (number - 1) & 1}


def _attributes(pid: int | str) -> list[object]:
    """Return the attributes that must be equal."""
    lines = [line for line in read_of(pid, "status").splitlines() if line.partition(b":")[0] in _STATUS]
    spaces = [os.readlink(f"/proc/{pid}/ns/{name}") for name in sorted(os.listdir(f"/proc/{pid}/ns"))]
    policy = os.sched_getscheduler(0 if isinstance(pid, str) else pid)
    return [root_of(pid), lines, spaces, policy, *(_read_optional(pid, name) for name in _COMPARED)]


def root_of(pid: int | str) -> tuple[int, int, bytes]:
    """Return device, inode and mount ID of the root directory of a process.

    The mount ID tells a chroot(2) to a bind mount of `/` from `/` itself: the bind mount lacks what is mounted below
    `/`.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        found, lines = os.fstat(root), read_of("self", f"fdinfo/{root}").splitlines()
    finally:
        os.close(root)
    return found.st_dev, found.st_ino, next(line for line in lines if line.startswith(_MOUNT))


def _read_optional(pid: int | str, name: str) -> bytes:
    """Read a file of /proc/PID. Return nothing if this kernel does not have the file."""
    try:
        return read_of(pid, name)
    except OSError:
        return b""


def _join_cgroups(pid: int) -> None:
    wanted, here = read_of(pid, "cgroup"), read_of("self", "cgroup")
    if wanted == here:
        return
    for line in set(wanted.splitlines()) - set(here.splitlines()):
        _, controllers, path = line.split(b":", 2)
        for mountpoint in _mountpoints(controllers):
            write_to(os.fsdecode(mountpoint + path) + "/cgroup.procs", b"0")


def _mountpoints(controllers: bytes) -> Iterator[bytes]:
    """Yield the mountpoint of the hierarchy with these controllers, if its root is mounted (cgroups(7)). v2 has no
    controllers.
    """
    for line in read_of("self", "mountinfo").rstrip(b"\n").split(b"\n"):
        left, _, right = line.partition(b" - ")
        kind, _, options = right.split(b" ", 2)
        fields = left.split(b" ")
        is_match = set(controllers.split(b",")) <= set(options.split(b",")) if controllers else kind == b"cgroup2"
        if kind in _GROUPS and fields[3] == b"/" and is_match:
            yield fields[4]
            return
