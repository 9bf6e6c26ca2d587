"""How the state of a container is shown: as an OCI runtime state (runtime.md, "State"), and as one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import msgspec

from imgfs.errors import NotFound, StateError
from imgfs.execution.containers import Containers, FoundContainer
from imgfs.execution.records.record import Container, ContainerRecord, ContainerStatus

OCI_VERSION = "1.0.2"
"""The version of the runtime specification whose fields a state has."""


def encode_states(containers: Containers, *, running: bool) -> bytes:
    """Return a JSON array with the states of all containers, or of those that have not ended.

    An entry of a damaged container has only its ID and an `error`. Blocks, for long if there are many containers.
    Raises StorageFailed.
    """
    return b"[\n" + b",\n".join(_states(containers, running=running)) + b"\n]\n"


def _states(containers: Containers, *, running: bool) -> Iterator[bytes]:
    for id in sorted(containers.records.ids()):
        if running and _has_ended(containers.records.find(id)):
            continue
        try:
            found = containers.read(id)
        except NotFound:
            continue  # it was deleted meanwhile
        except StateError as error:
            yield msgspec.json.encode({"id": id, "error": error.message})
            continue
        if not running or found.status.status != "stopped":
            yield msgspec.json.encode(state_document_of(found))


def _has_ended(record: ContainerRecord) -> bool:
    """Return whether status.json says that the container ended. Most containers have, and need no further check."""
    try:
        return record.written_status().status == "stopped"
    except (NotFound, StateError):
        return False


def state_document_of(found: FoundContainer) -> dict[str, Any]:
    """Return the state document of a container that was read."""
    bundle = os.fsencode(found.record.bundle).decode(errors="backslashreplace")
    return state_document(found.container, found.status, bundle)


def state_document(container: Container, status: ContainerStatus, bundle: str) -> dict[str, Any]:
    """Return the fields of an OCI state, followed by all other known fields. `bundle` is a path of the host."""
    state: dict[str, Any] = {"ociVersion": OCI_VERSION, "id": container.id, "status": status.status}
    if status.pid is not None:
        state["pid"] = status.pid
    state |= {"bundle": bundle, "annotations": container.labels}
    facts = msgspec.to_builtins(container) | msgspec.to_builtins(status)
    return state | {key: value for key, value in facts.items() if key not in state}


def summary_line(container: Container, status: ContainerStatus) -> str:
    """Describe the state in one line."""
    if status.status == "created":
        return f"created at {container.created}, not started"
    if status.status == "running":
        return f"running since {status.started} (pid {status.pid})"
    when = f" at {status.finished}" if status.finished else ""
    reason = " ".join(status.reason.split())  # a runtime's message may have several lines
    why = f": {reason}" if reason else ""
    memory = ", out of memory" if status.oom else ""
    return f"{_end(status)}{memory}{when}{why}"


def _end(status: ContainerStatus) -> str:
    if status.signal is not None:
        return f"killed by {signal_name(status.signal)}"
    return "ended" if status.exit_code is None else f"exited with {status.exit_code}"


def signal_name(number: int) -> str:
    """Return `SIGKILL`, or `signal 40` for a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
