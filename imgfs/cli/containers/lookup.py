"""Containers as commands see them: resolve IDs, read states, wait for the end.

States are read below the mount. Waiting and signals use the supervisor in the state directory, not the daemon.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import time
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import click
from click.shell_completion import CompletionItem

from imgfs.cli.failure import Failure, from_os_error, report_line
from imgfs.cli.options import tree_of
from imgfs.cli.tree import Tree
from imgfs.errors import ImgfsError

RARELY = 0.5
"""Seconds between two polls of a container by users who cannot open the supervisor's lock."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_MADE_UP = re.compile(r"[0-9a-f]{12}\Z")
"""A generated ID. Only generated IDs can be shortened, so that `imgfs delete -f web` never deletes `web2`."""


class RuntimeDocument(TypedDict):
    """The OCI runtime of a container."""

    name: str
    path: str


class ContainerState(TypedDict):
    """A container's state.json, or the record of a deleted container (imgfs/execution/state_documents.py).

    The record of a damaged container may contain only its ID and the reason.
    """

    id: str
    status: str
    pid: NotRequired[int | None]
    bundle: NotRequired[str]
    """The directory of the record, which contains the bundle; absent for a deleted container."""
    image: str
    created: str
    started: str | None
    finished: str | None
    args: list[str]
    exit_code: int | None
    signal: int | None
    oom: bool
    reason: str
    runtime: RuntimeDocument
    stop_signal: str
    tty: bool


def ids(tree: Tree) -> list[str]:
    """Return the IDs of all containers, sorted. Raises OSError."""
    return sorted(os.listdir(tree.containers))


def existing(tree: Tree, text: str) -> str:
    """Return the ID of the container that `text` means: an ID or the prefix of a generated one. Raises Failure."""
    id = _meant(tree, text, tree.containers)
    if id is None:
        raise Failure(f"container {text}: does not exist; `imgfs ps -a` lists all", errno.ENOENT)
    return id


def existing_or_deleted(tree: Tree, text: str) -> str:
    """Return the ID as `existing` does, also for a deleted container whose record is kept."""
    id = _meant(tree, text, tree.containers) or _meant(tree, text, os.path.dirname(tree.deleted_container(text)))
    if id is None:
        raise Failure(
            f"container {text}: does not exist, and no record of a deleted one is kept; `imgfs ps -a` lists all",
            errno.ENOENT,
        )
    return id


def state(tree: Tree, id: str) -> ContainerState:
    """Return the state of a container. Raises Failure if it does not exist."""
    try:
        return cast("ContainerState", tree.read_json(f"{tree.container(id)}/state.json"))
    except OSError as error:
        raise tree.container_failure(error, id) from None


def last_state(tree: Tree, id: str) -> ContainerState:
    """Return the state of a container, or the record of a deleted one. Raises Failure if neither exists."""
    for path in (f"{tree.container(id)}/state.json", tree.deleted_container(id)):
        try:
            return cast("ContainerState", tree.read_json(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise tree.container_failure(error, id) from None
    raise Failure(f"container {id}: was deleted, and its exit status is no longer recorded", errno.ENOENT)


def has_ended(found: ContainerState) -> bool:
    """Return whether the container has ended. The record of a damaged container has no status and counts as ended."""
    return found.get("status", "stopped") == "stopped"


def wait_end(tree: Tree, id: str) -> ContainerState:
    """Wait until a container and its supervisor have ended; return the state. Blocks on the lock, not polling."""
    from imgfs.execution.records.record import ContainerRecord

    while True:
        found = last_state(tree, id)
        record = record_of(found)
        if record is None:
            return found
        if has_ended(found) and not ContainerRecord(Path(record)).is_supervised():
            return last_state(tree, id)
        if told := _hear_unkept(record):
            return cast("ContainerState", {**found, **told})
        try:
            _wait_unlocked(record)
        except PermissionError:
            time.sleep(RARELY)
            continue
        after = last_state(tree, id)
        if not has_ended(after):
            _wait_process(after.get("pid"))


def record_of(found: ContainerState) -> str | None:
    """Return the directory of the container's record in the state directory; None for a deleted container."""
    return os.path.dirname(found["bundle"]) if "bundle" in found else None


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete container IDs."""
    try:
        return [CompletionItem(id) for id in ids(tree_of(ctx)) if id.startswith(incomplete)]
    except OSError:
        return []


def _meant(tree: Tree, text: str, directory: str) -> str | None:
    if not _ID.match(text):
        raise Failure(f"container {text!r}: is not an ID; `imgfs ps -a` lists all", errno.EINVAL)
    if os.path.lexists(f"{directory}/{text}"):
        return text
    try:
        found = sorted(id for id in os.listdir(directory) if id.startswith(text) and _MADE_UP.match(id))
    except OSError as error:
        raise from_os_error(error, directory, None, tree.log) from None
    if len(found) > 1:
        raise Failure(f"container {text}: {len(found)} IDs have this prefix; give more characters", errno.EINVAL)
    return found[0] if found else None


def _hear_unkept(record: str) -> dict[str, Any] | None:
    """Wait for the supervisor's message about the end. Returns the status if the disk could not store it, else None."""
    from imgfs.execution.control import Connection

    try:
        with Connection.open(Path(record, "control")) as supervisor:
            told = supervisor.ask({"do": "wait"})
    except (ImgfsError, OSError):
        return None  # there is no supervisor; the lock decides
    if told.get("is_kept", True):
        return None
    for note in told.get("notes", ()):
        report_line(str(note))
    return told["status"]


def _wait_unlocked(record: str) -> None:
    """Wait until no supervisor holds the lock. Raises PermissionError."""
    try:
        file = os.open(f"{record}/supervisor.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def _wait_process(pid: int | None) -> None:
    """Wait for a process whose supervisor was killed."""
    try:
        process = os.pidfd_open(pid) if pid is not None else None
    except ProcessLookupError:
        return
    if process is None:
        time.sleep(RARELY)
        return
    try:
        select.select([process], [], [])
    finally:
        os.close(process)
