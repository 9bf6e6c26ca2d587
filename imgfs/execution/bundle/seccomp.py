"""The system calls that a container may make: converts a seccomp profile of the host to the filter of the runtime spec.

A profile is written for all machines and capabilities (containers-common, seccomp.json(5); Docker's format is the
same): its rules have conditions, and it maps machines to architectures. The filter (config-linux.md, "Seccomp") has
neither.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from imgfs.errors import Invalid, NotFound, from_os
from imgfs.kernel.abi import runs_x32
from imgfs.kernel.syscalls import numbers_of
from imgfs.oci.platform import local_platform

DEFAULT, NONE = "default", "none"
PLACES = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
"""Where a host has its default profile, the administrator's before the distribution's."""
SIZE_MAX = 1 << 20
"""Largest size in bytes of a profile. The profile of containers-common has 16 KiB."""
_X32 = "SCMP_ARCH_X32"
Json = dict[str, Any]
_Identity = tuple[int, ...] | None
_KERNEL = Path("/proc/sys/kernel/seccomp")
_MACHINES = {
    "amd64": ("SCMP_ARCH_X86_64", "amd64"),
    "386": ("SCMP_ARCH_X86", "x86"),
    "arm64": ("SCMP_ARCH_AARCH64", "arm64"),
    "arm": ("SCMP_ARCH_ARM", "arm"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
}
"""By Go's name of an architecture: the name in libseccomp, and the word in conditions."""


class _Conditions(msgspec.Struct, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class _Argument(msgspec.Struct, rename="camel"):
    index: int
    value: int
    op: str
    value_two: int = 0


class _Rule(msgspec.Struct, rename="camel"):
    action: str
    names: list[str] | None = None
    name: str = ""
    args: list[_Argument] | None = None
    errno_ret: int | None = None
    errno: str = ""
    includes: _Conditions | None = None
    excludes: _Conditions | None = None


class _Architecture(msgspec.Struct, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Profile(msgspec.Struct, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    default_errno: str = ""
    arch_map: list[_Architecture] | None = None
    architectures: list[str] | None = None
    flags: list[str] | None = None
    syscalls: list[_Rule] | None = None


class Machine(msgspec.Struct, frozen=True):
    """What the conditions of a profile compare, besides capabilities."""

    architecture: str
    """As in image configs."""
    kernel: str
    """The kernel release of uname(1)."""


def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    return Machine(local_platform().architecture, os.uname().release)


def default_profile(places: Sequence[str] = PLACES) -> str | None:
    """Return the path of this host's default profile; None if there is none or the kernel has no filters."""
    return next((path for path in places if os.path.exists(path)), None) if _KERNEL.exists() else None


def filter_of(wanted: str, capabilities: Collection[str]) -> Json | None:
    """Return the filter for a process with `capabilities`, or None for no filter.

    `wanted` is `default`, `none`, or the path of a profile. Raises NotFound, Invalid and StorageFailed.
    """
    path = default_profile() if wanted == DEFAULT else wanted
    if path is None or wanted == NONE:
        return None
    return _filter(path, _identity(path), tuple(capabilities))


def parse_profile(data: bytes, capabilities: Collection[str], machine: Machine, subject: str) -> Json:
    """Convert a profile to the filter of a process with `capabilities` on `machine`. Pure. Raises Invalid."""
    try:
        profile = msgspec.json.decode(data, type=_Profile)
        rules = [_rule(one) for one in profile.syscalls or () if _applies(one, capabilities, machine)]
        made: Json = {"defaultAction": profile.default_action, "syscalls": rules}
        if (number := _number(profile.default_errno_ret, profile.default_errno)) is not None:
            made["defaultErrnoRet"] = number
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Invalid(f"{subject}: {error}; correct it, or choose another in [plugins.execution.oci]") from None
    if profile.flags:
        made["flags"] = profile.flags
    if architectures := profile.architectures or _architectures(profile.arch_map or (), machine):
        made["architectures"] = architectures
    return made


@lru_cache(maxsize=2)
def _filter(path: str, _: _Identity, capabilities: tuple[str, ...]) -> Json:
    """Cached while the file is unchanged, for processes that start many containers, and for their children."""
    made = parse_profile(_read(path), capabilities, this_machine(), f"seccomp profile {path}")
    _sort_names(made["syscalls"])
    _leave_out_unknown(made)
    return made


def _leave_out_unknown(made: Json) -> None:
    """Leave x32 out if the kernel cannot run such programs. That halves the runtime's work for the filter.

    A program that makes an x32 call there gets SIGSYS instead of ENOSYS, as for every architecture that is not in a
    filter.
    """
    if _X32 in made.get("architectures", ()) and not runs_x32():
        made["architectures"].remove(_X32)


def _sort_names(rules: Sequence[Json]) -> None:
    """Sort the names by descending number, with which runc builds the same filter 3 ms faster.

    libseccomp inserts each name into a list sorted by number, and searches from the list's beginning.
    """
    numbers = numbers_of(name for rule in rules for name in rule["names"])
    for rule in rules:
        names: list[str] = rule["names"]
        names.sort(key=lambda name: -numbers.get(name, 0))


def _identity(path: str) -> _Identity:
    with suppress(OSError):  # reading the file reports the error
        status = os.stat(path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"seccomp profile {path}: does not exist; choose another in [plugins.execution.oci]") from None
    except OSError as error:
        raise from_os(error, f"seccomp profile {path}") from None
    if len(data) > SIZE_MAX:
        raise Invalid(f"seccomp profile {path}: has more than {SIZE_MAX} bytes")
    return data


def _applies(rule: _Rule, capabilities: Collection[str], machine: Machine) -> bool:
    wanted, unwanted = rule.includes or _Conditions(), rule.excludes or _Conditions()
    word = _MACHINES.get(machine.architecture, ("", machine.architecture))[1]
    if word in (unwanted.arches or ()) or any(one in capabilities for one in unwanted.caps or ()):
        return False
    if unwanted.min_kernel and _release(machine.kernel) >= _release(unwanted.min_kernel):
        return False
    if (wanted.arches and word not in wanted.arches) or not all(one in capabilities for one in wanted.caps or ()):
        return False
    return not wanted.min_kernel or _release(machine.kernel) >= _release(wanted.min_kernel)


def _rule(rule: _Rule) -> Json:
    made: Json = {"names": [*(rule.names or ()), *([rule.name] if rule.name else [])], "action": rule.action}
    if not made["names"]:
        raise ValueError("a rule has no names")
    if (number := _number(rule.errno_ret, rule.errno)) is not None:
        made["errnoRet"] = number
    if rule.args:
        made["args"] = [msgspec.to_builtins(one) for one in rule.args]
    return made


def _number(number: int | None, name: str) -> int | None:
    """Return an errno given by number, or else by name. Raises ValueError."""
    if number is not None or not name:
        return number
    found = getattr(errno, name, None)
    if not isinstance(found, int):
        raise ValueError(f"{name}: is not an errno")
    return found


def _architectures(known: Sequence[_Architecture], machine: Machine) -> list[str]:
    """Return the machine's own architecture, and those whose programs it can run, too."""
    own = _MACHINES.get(machine.architecture, ("", ""))[0]
    found = next((one for one in known if one.architecture == own), None)
    return [own, *(found.sub_architectures or ())] if found else []


def _release(text: str) -> tuple[int, int]:
    """Return the major and minor version of a kernel. Raises ValueError."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    if not found:
        raise ValueError(f"{text!r}: is not a kernel version")
    return int(found[1]), int(found[2] or 0)
