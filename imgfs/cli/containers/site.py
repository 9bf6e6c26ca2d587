"""The facts that starting a container needs from the tree: state directory, runtimes and their options."""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.tree import Tree
from imgfs.execution.options import ExecutionOptions, RuntimeProgram
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.runtimes.choice import accepted, installed
from imgfs.execution.start import Site


class Facts(msgspec.Struct, frozen=True):
    """Facts about the daemon of a tree. They do not change while the daemon lives."""

    mountpoint: str
    mount: tuple[int, int]
    """The identity of the mount (`_mount_of`)."""
    state: Path
    options: ExecutionOptions
    programs: tuple[RuntimeProgram, ...]

    def are_of(self, tree: Tree) -> bool:
        """Return whether these facts belong to the tree that is mounted now."""
        try:
            return (self.mountpoint, self.mount) == (tree.path, _mount_of(tree))
        except OSError:
            return False


def facts_of(tree: Tree) -> Facts:
    """Read the facts from files of the tree."""
    return Facts(
        mountpoint=tree.path,
        mount=_mount_of(tree),
        state=state_of(tree),
        options=msgspec.convert(_facts(tree, "execution/oci/config"), ExecutionOptions),
        programs=tuple(_programs(tree)),
    )


def site_of(tree: Tree, known: Facts | None = None) -> Site:
    """Return the site to start containers at. `known` facts are not read again. Raises NotFound without a runtime."""
    known = known or facts_of(tree)
    runtimes = installed(known.programs, known.options.runtime)
    return Site(
        mountpoint=tree.path,
        state=known.state,
        runtimes=accepted(runtimes, ContainerRecords(known.state).runtime_root),
        log_bytes=known.options.log_bytes,
        deadline=known.options.deadline_seconds,
        seccomp=known.options.seccomp,
    )


def state_of(tree: Tree) -> Path:
    """Return the state directory of the tree's daemon."""
    path = f"{tree.path}/.imgfs/state.json"
    try:
        return Path(tree.read_json(path)["state"])
    except OSError as error:
        raise from_os_error(error, path) from None


def _mount_of(tree: Tree) -> tuple[int, int]:
    """Return the mount's device number and the daemon's start time in ns. Raises OSError.

    The kernel reuses device numbers, so the number alone does not identify a mount.
    """
    found = os.stat(tree.path)
    return found.st_dev, found.st_mtime_ns


def _programs(tree: Tree) -> Iterator[RuntimeProgram]:
    """Yield the runtimes that the plugins of this mount name, in order, whether or not they are installed."""
    for id in sorted(os.listdir(f"{tree.path}/.imgfs/plugins/runtime")):
        program = _facts(tree, f"runtime/{id}/exports").get("program")
        if isinstance(program, str) and not _read(tree, f"runtime/{id}/status").startswith(b"off: "):
            yield RuntimeProgram(id, program)


def _facts(tree: Tree, name: str) -> dict[str, Any]:
    return tomllib.loads(_read(tree, name).decode(errors="replace"))


def _read(tree: Tree, name: str) -> bytes:
    path = f"{tree.path}/.imgfs/plugins/{name}"
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        plugin = ".".join(name.split("/")[:2])
        raise Failure(f"{plugin}: is not a plugin of this mount; see `imgfs plugins`", errno.ENOENT) from None
    except OSError as error:
        raise from_os_error(error, path) from None
