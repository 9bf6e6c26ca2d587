"""Where containers are: the tree's own facts about its state directory, its runtimes and their options."""

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
    """What the daemon of a tree says of itself: the same as long as it lives."""

    mountpoint: str
    mount: tuple[int, int]
    """Which mount that is (`_mount_of`)."""
    state: Path
    options: ExecutionOptions
    programs: tuple[RuntimeProgram, ...]

    def are_of(self, tree: Tree) -> bool:
        """Whether they are of the tree that is mounted there now."""
        try:
            return (self.mountpoint, self.mount) == (tree.path, _mount_of(tree))
        except OSError:
            return False


def facts_of(tree: Tree) -> Facts:
    """Ask the tree, file by file."""
    return Facts(
        mountpoint=tree.path,
        mount=_mount_of(tree),
        state=state_of(tree),
        options=msgspec.convert(_facts(tree, "execution/oci/config"), ExecutionOptions),
        programs=tuple(_programs(tree)),
    )


def site_of(tree: Tree, known: Facts | None = None) -> Site:
    """Where containers are started; what is `known` of it is not asked for. Raises NotFound without a runtime."""
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
    """The state directory of the tree's daemon."""
    path = f"{tree.path}/.imgfs/state.json"
    try:
        return Path(tree.read_json(path)["state"])
    except OSError as error:
        raise from_os_error(error, path) from None


def _mount_of(tree: Tree) -> tuple[int, int]:
    """The number of the mount, and when its daemon began, in ns: the kernel gives a number again when it is free.

    Raises OSError.
    """
    found = os.stat(tree.path)
    return found.st_dev, found.st_mtime_ns


def _programs(tree: Tree) -> Iterator[RuntimeProgram]:
    """The runtimes that the plugins of this mount name, in their order, those too that may not be installed."""
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
        raise Failure(f"{plugin}: is no plugin of this mount; see `imgfs plugins`", errno.ENOENT) from None
    except OSError as error:
        raise from_os_error(error, path) from None
