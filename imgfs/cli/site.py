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
from imgfs.execution.choice import accepted, installed
from imgfs.execution.options import Options, Program
from imgfs.execution.records import Records
from imgfs.execution.starting import Site


def site_of(tree: Tree) -> Site:
    """Where containers are started. Raises NotFound where no runtime is installed."""
    state = state_of(tree)
    options = msgspec.convert(_facts(tree, "execution/oci/config"), Options)
    runtimes = installed(_programs(tree), options.runtime)
    return Site(
        mountpoint=tree.path,
        state=state,
        runtimes=accepted(runtimes, Records(state).runtime_root),
        log_bytes=options.log_bytes,
        deadline=options.deadline_seconds,
        seccomp=options.seccomp,
    )


def state_of(tree: Tree) -> Path:
    """The state directory of the tree's daemon."""
    path = f"{tree.path}/.imgfs/state.json"
    try:
        return Path(tree.read_json(path)["state"])
    except OSError as error:
        raise from_os_error(error, path) from None


def _programs(tree: Tree) -> Iterator[Program]:
    """The runtimes that the plugins of this mount name, in their order, those too that may not be installed."""
    for id in sorted(os.listdir(f"{tree.path}/.imgfs/plugins/runtime")):
        program = _facts(tree, f"runtime/{id}/exports").get("program")
        if isinstance(program, str) and not _read(tree, f"runtime/{id}/status").startswith(b"off: "):
            yield Program(id, program)


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
