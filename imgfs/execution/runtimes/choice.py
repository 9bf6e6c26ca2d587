"""Chooses the runtime of a container: the first installed one that has not refused this host.

The first container finds out whether a runtime accepts this host. If the runtime refuses and the next one does not, the
refusal and its reason are remembered until the next boot, or until the runtime's file changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from imgfs.disk.durable import write_file
from imgfs.errors import NotFound
from imgfs.execution.options import RuntimeProgram
from imgfs.execution.records.record import InstalledRuntime
from imgfs.execution.records.records import ContainerRecords
from imgfs.kernel.proc import boot_id

_FILE = "refused.json"
_MORE = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Directories searched after PATH, because a user's PATH often has no sbin."""


class _HostRefusal(msgspec.Struct, frozen=True):
    path: str
    changed: int
    reason: str


class _Refusals(msgspec.Struct, frozen=True):
    boot: str
    refusals: list[_HostRefusal]


def obstacle(program: RuntimeProgram, state: Path) -> str:
    """Return why a runtime gets no containers: it is not installed, or has refused this host. Empty if it gets them.

    Reads PATH and two small files.
    """
    path = _path_of(program)
    if path is None:
        return f"{program.program} is not installed: not found in PATH"
    refusal = _refusal(path, _read(ContainerRecords(state).runtime_root))
    return f"refused this host: {' '.join(refusal.reason.split())}" if refusal else ""


def installed(programs: Iterable[RuntimeProgram], wanted: str) -> list[InstalledRuntime]:
    """Return the installed ones of `programs`, or only the `wanted` one, a name or a path. Raises NotFound."""
    if wanted:
        programs = [one for one in programs if one.name == wanted] or [RuntimeProgram(os.path.basename(wanted), wanted)]
    named = [(one, _path_of(one)) for one in programs]
    found = [InstalledRuntime(one.name, path) for one, path in named if path]
    if not found:
        names = ", ".join(one.program for one, _ in named)
        raise NotFound(
            f"no OCI runtime: {names}: not installed; install crun or runc, or set another one as `runtime` in "
            "[plugins.execution.oci] in imgfs.toml"
        )
    return found


def accepted(runtimes: Sequence[InstalledRuntime], root: Path) -> list[InstalledRuntime]:
    """Return the runtimes that have not refused this host, or all of them if every one has."""
    known = _read(root)
    return [one for one in runtimes if _refusal(one.path, known) is None] or list(runtimes)


def remember_refusal(runtime: InstalledRuntime, reason: str, root: Path) -> None:
    """Remember until the next boot that a runtime refused this host.

    If this cannot be written, the refusal is found again.
    """
    known = _read(root)
    others = [one for one in known.refusals if one.path != runtime.path]
    kept = _Refusals(known.boot, [*others, _HostRefusal(runtime.path, _changed(runtime.path), reason)])
    with suppress(OSError):
        write_file(root / _FILE, msgspec.json.encode(kept))


def _path_of(program: RuntimeProgram) -> str | None:
    place = shutil.which(program.program, path=f"{os.environ.get('PATH', '')}:{_MORE}")
    return os.path.realpath(place) if place else None


def _refusal(path: str, known: _Refusals) -> _HostRefusal | None:
    """Return the refusal of the program at `path`, if the program is unchanged since."""
    return next((one for one in known.refusals if one.path == path and one.changed == _changed(path)), None)


def _read(root: Path) -> _Refusals:
    boot = boot_id()
    with suppress(OSError, msgspec.MsgspecError):
        known = msgspec.json.decode((root / _FILE).read_bytes(), type=_Refusals)
        if known.boot == boot:
            return known
    return _Refusals(boot, [])


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
