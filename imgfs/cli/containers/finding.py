"""Containers as commands see them: what people type for one, how it is now, and waiting for its end.

What is told is read below the mount. Waiting and signals go past the daemon, to the supervisor in the state directory.
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

from imgfs.cli.failure import Failure, from_os_error, tell
from imgfs.cli.options import tree_of
from imgfs.cli.tree import Tree
from imgfs.errors import ImgfsError

RARELY = 0.5
"""Seconds between two looks at a container whose supervisor's lock only root may wait for."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_MADE_UP = re.compile(r"[0-9a-f]{12}\Z")
"""An id that nobody chose. Its beginning may stand for it; `imgfs delete -f web` is never to hit `web2`."""


class Runtime(TypedDict):
    """The OCI runtime of a container."""

    name: str
    path: str


class State(TypedDict):
    """A container's state.json, or what is kept of it once it is deleted (imgfs/execution/state_documents.py).

    Of a damaged one no more may be kept than its id, and the reason.
    """

    id: str
    status: str
    pid: NotRequired[int | None]
    bundle: NotRequired[str]
    """Of what was not deleted: where its record is, and in it the bundle."""
    image: str
    created: str
    started: str | None
    finished: str | None
    args: list[str]
    exit_code: int | None
    signal: int | None
    oom: bool
    reason: str
    runtime: Runtime
    stop_signal: str
    tty: bool


def ids(tree: Tree) -> list[str]:
    """The ids of all containers, sorted. Raises OSError."""
    return sorted(os.listdir(tree.containers))


def existing(tree: Tree, text: str) -> str:
    """The id of the container that `text` means: an id, or the beginning of one nobody chose. Fails without any."""
    id = _meant(tree, text, tree.containers)
    if id is None:
        raise Failure(f"container {text}: does not exist; `imgfs ps -a` lists all", errno.ENOENT)
    return id


def existing_or_deleted(tree: Tree, text: str) -> str:
    """As `existing`, also of a container that was deleted and not forgotten."""
    id = _meant(tree, text, tree.containers) or _meant(tree, text, os.path.dirname(tree.deleted_container(text)))
    if id is None:
        raise Failure(
            f"container {text}: does not exist, and no deleted one is known; `imgfs ps -a` lists all", errno.ENOENT
        )
    return id


def state(tree: Tree, id: str) -> State:
    """How a container is now. Fails where there is none."""
    try:
        return cast("State", tree.read_json(f"{tree.container(id)}/state.json"))
    except OSError as error:
        raise tree.container_failure(error, id) from None


def last_state(tree: Tree, id: str) -> State:
    """How a container is now, or how it ended if it was deleted. Fails where nothing is known of it."""
    for path in (f"{tree.container(id)}/state.json", tree.deleted_container(id)):
        try:
            return cast("State", tree.read_json(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise tree.container_failure(error, id) from None
    raise Failure(f"container {id}: was deleted, and how it ended is not known any more", errno.ENOENT)


def has_ended(found: State) -> bool:
    """Whether it runs no more. What is kept of a damaged container has no status."""
    return found.get("status", "stopped") == "stopped"


def wait_end(tree: Tree, id: str) -> State:
    """Wait until a container has ended and its supervisor too; how it ended. Asks no more often than something ends."""
    from imgfs.execution.records.records import ContainerRecord

    while True:
        found = last_state(tree, id)
        record = record_of(found)
        if record is None:
            return found
        if has_ended(found) and not ContainerRecord(Path(record)).is_supervised():
            return last_state(tree, id)
        if told := _hear_unkept(record):
            return cast("State", {**found, **told})
        try:
            _wait_unlocked(record)
        except PermissionError:
            time.sleep(RARELY)
            continue
        after = last_state(tree, id)
        if not has_ended(after):
            _wait_process(after.get("pid"))


def record_of(found: State) -> str | None:
    """The directory in the state directory that tells of a container; None for one that was deleted."""
    return os.path.dirname(found["bundle"]) if "bundle" in found else None


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids that begin so."""
    try:
        return [CompletionItem(id) for id in ids(tree_of(ctx)) if id.startswith(incomplete)]
    except OSError:
        return []


def _meant(tree: Tree, text: str, directory: str) -> str | None:
    if not _ID.match(text):
        raise Failure(f"container {text!r}: is no id; `imgfs ps -a` lists all", errno.EINVAL)
    if os.path.lexists(f"{directory}/{text}"):
        return text
    try:
        found = sorted(id for id in os.listdir(directory) if id.startswith(text) and _MADE_UP.match(id))
    except OSError as error:
        raise from_os_error(error, directory, None, tree.log) from None
    if len(found) > 1:
        raise Failure(f"container {text}: {len(found)} ids begin so; write more of it", errno.EINVAL)
    return found[0] if found else None


def _hear_unkept(record: str) -> dict[str, Any] | None:
    """Wait for a supervisor to tell how its container ended; that, if it is what the disk does not take."""
    from imgfs.execution.control import Connection

    try:
        with Connection.open(Path(record, "control")) as supervisor:
            told = supervisor.ask({"do": "wait"})
    except (ImgfsError, OSError):
        return None  # it has gone, or never was one: its lock tells
    if told.get("is_kept", True):
        return None
    for note in told.get("notes", ()):
        tell(str(note))
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
    """Wait for a process that goes on without a supervisor."""
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
