"""Which system calls a container may make: a seccomp profile of the host, as the runtime specification has filters.

Profiles are written for every machine and every set of capabilities (containers-common, seccomp.json(5); Docker's have
the same form): rules have conditions, and architectures are chosen by the machine's own. What the runtime gets
(config-linux.md, "Seccomp") has neither.
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
"""Where a host has its default, the administrator's before the distribution's."""
SIZE_MAX = 1 << 20
"""Bytes of a profile; that of containers-common has 16 KiB."""
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
"""By Go's name of an architecture: libseccomp's, and the word of conditions."""


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
    """What conditions of a profile are about, besides capabilities."""

    architecture: str
    """As images name it."""
    kernel: str
    """As uname(1) tells its release."""


def this_machine() -> Machine:
    """The one that this runs on."""
    return Machine(local_platform().architecture, os.uname().release)


def default_profile(places: Sequence[str] = PLACES) -> str | None:
    """The path of this host's default; None where it has none, or its kernel no filters."""
    return next((path for path in places if os.path.exists(path)), None) if _KERNEL.exists() else None


def filter_of(wanted: str, capabilities: Collection[str]) -> Json | None:
    """The filter for a process with `capabilities`; None for none.

    `wanted` is `default`, `none`, or the path of a profile. Raises NotFound, Invalid and StorageFailed.
    """
    path = default_profile() if wanted == DEFAULT else wanted
    if path is None or wanted == NONE:
        return None
    return _filter(path, _identity(path), tuple(capabilities))


def parse_profile(data: bytes, capabilities: Collection[str], machine: Machine, subject: str) -> Json:
    """The filter that a profile is for a process with `capabilities` on `machine`. Pure. Raises Invalid."""
    try:
        profile = msgspec.json.decode(data, type=_Profile)
        rules = [_rule(one) for one in profile.syscalls or () if _applies(one, capabilities, machine)]
        made: Json = {"defaultAction": profile.default_action, "syscalls": rules}
        if (number := _number(profile.default_errno_ret, profile.default_errno)) is not None:
            made["defaultErrnoRet"] = number
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Invalid(f"{subject}: {error}; mend it, or choose another in [plugins.execution.oci]") from None
    if profile.flags:
        made["flags"] = profile.flags
    if architectures := profile.architectures or _architectures(profile.arch_map or (), machine):
        made["architectures"] = architectures
    return made


@lru_cache(maxsize=2)
def _filter(path: str, _: _Identity, capabilities: tuple[str, ...]) -> Json:
    """The same as long as the file is: read once by a process that starts many, or whose children do."""
    made = parse_profile(_read(path), capabilities, this_machine(), f"seccomp profile {path}")
    _sort_names(made["syscalls"])
    _leave_out_unknown(made)
    return made


def _leave_out_unknown(made: Json) -> None:
    """Leave x32 out where the kernel knows no such programs: half of what a runtime has to do for the filter.

    Whatever makes such a call there ends by SIGSYS, as for every architecture that is not in a filter, and not with
    ENOSYS by the kernel.
    """
    if _X32 in made.get("architectures", ()) and not runs_x32():
        made["architectures"].remove(_X32)


def _sort_names(rules: Sequence[Json]) -> None:
    """Put the highest number first: so runc makes the same program in 3 ms less.

    For each name that it is given libseccomp walks a list in the order of numbers until it comes to its place.
    """
    numbers = numbers_of(name for rule in rules for name in rule["names"])
    for rule in rules:
        names: list[str] = rule["names"]
        names.sort(key=lambda name: -numbers.get(name, 0))


def _identity(path: str) -> _Identity:
    with suppress(OSError):  # told by who reads it
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
        raise ValueError("a rule without names")
    if (number := _number(rule.errno_ret, rule.errno)) is not None:
        made["errnoRet"] = number
    if rule.args:
        made["args"] = [msgspec.to_builtins(one) for one in rule.args]
    return made


def _number(number: int | None, name: str) -> int | None:
    """An errno by its number, else by its name. Raises ValueError."""
    if number is not None or not name:
        return number
    found = getattr(errno, name, None)
    if not isinstance(found, int):
        raise ValueError(f"{name}: is no errno")
    return found


def _architectures(known: Sequence[_Architecture], machine: Machine) -> list[str]:
    """The machine's own, and those whose programs it runs too."""
    own = _MACHINES.get(machine.architecture, ("", ""))[0]
    found = next((one for one in known if one.architecture == own), None)
    return [own, *(found.sub_architectures or ())] if found else []


def _release(text: str) -> tuple[int, int]:
    """Major and minor number of a kernel. Raises ValueError."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    if not found:
        raise ValueError(f"{text!r}: is no version of a kernel")
    return int(found[1]), int(found[2] or 0)
