"""Which runtime gets a container: those that are installed, in order, without those that this host was refused by.

Whether a runtime takes this host is found out by the first container that it is given: where it refuses and the next
one does not, that is remembered until the next boot, with its reason. A runtime that was changed meanwhile is asked
again.
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
"""Where runtimes are looked for besides PATH: that of a user often has no sbin."""


class _HostRefusal(msgspec.Struct, frozen=True):
    path: str
    changed: int
    reason: str


class _Refusals(msgspec.Struct, frozen=True):
    boot: str
    refusals: list[_HostRefusal]


def obstacle(program: RuntimeProgram, state: Path) -> str:
    """What keeps a runtime from getting containers: it is not here, or has refused this host. Empty where nothing does.

    Looks at PATH and two small files.
    """
    path = _path_of(program)
    if path is None:
        return f"{program.program} is not installed: no such program in PATH"
    refusal = _refusal(path, _read(ContainerRecords(state).runtime_root))
    return f"refused this host: {' '.join(refusal.reason.split())}" if refusal else ""


def installed(programs: Iterable[RuntimeProgram], wanted: str) -> list[InstalledRuntime]:
    """The runtimes that are here: all of `programs`, or the one that is `wanted`, a name or a path. Raises NotFound."""
    if wanted:
        programs = [one for one in programs if one.name == wanted] or [RuntimeProgram(os.path.basename(wanted), wanted)]
    named = [(one, _path_of(one)) for one in programs]
    found = [InstalledRuntime(one.name, path) for one, path in named if path]
    if not found:
        names = ", ".join(one.program for one, _ in named)
        raise NotFound(
            f"no OCI runtime: {names}: not installed; install crun or runc, or name another as `runtime` of "
            "[plugins.execution.oci] in imgfs.toml"
        )
    return found


def accepted(runtimes: Sequence[InstalledRuntime], root: Path) -> list[InstalledRuntime]:
    """Those that are not known to refuse this host; all, where that would leave none."""
    known = _read(root)
    return [one for one in runtimes if _refusal(one.path, known) is None] or list(runtimes)


def remember_refusal(runtime: InstalledRuntime, reason: str, root: Path) -> None:
    """Keep in mind until the next boot that this host was refused. What cannot be kept is found out again."""
    known = _read(root)
    others = [one for one in known.refusals if one.path != runtime.path]
    kept = _Refusals(known.boot, [*others, _HostRefusal(runtime.path, _changed(runtime.path), reason)])
    with suppress(OSError):
        write_file(root / _FILE, msgspec.json.encode(kept))


def _path_of(program: RuntimeProgram) -> str | None:
    place = shutil.which(program.program, path=f"{os.environ.get('PATH', '')}:{_MORE}")
    return os.path.realpath(place) if place else None


def _refusal(path: str, known: _Refusals) -> _HostRefusal | None:
    """How the program at `path`, as it is now, refused this host."""
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
