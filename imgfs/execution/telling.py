"""How a container is told of: as the OCI runtime specification tells a state (runtime.md, "State"), and as a line."""

from __future__ import annotations

import signal
from typing import Any

import msgspec

from imgfs.execution.record import Container, Status

OCI_VERSION = "1.0.2"
"""The version of the runtime specification whose fields a state has."""


def state_of(container: Container, status: Status, bundle: str) -> dict[str, Any]:
    """Info: the fields of an OCI state first, then all else that is known. `bundle` is a path of the host."""
    state: dict[str, Any] = {"ociVersion": OCI_VERSION, "id": container.id, "status": status.status}
    if status.pid is not None:
        state["pid"] = status.pid
    state |= {"bundle": bundle, "annotations": container.labels}
    facts = msgspec.to_builtins(container) | msgspec.to_builtins(status)
    return state | {key: value for key, value in facts.items() if key not in state}


def line_of(container: Container, status: Status) -> str:
    """One line for people."""
    if status.status == "created":
        return f"created at {container.created}, not started"
    if status.status == "running":
        return f"running since {status.started} (pid {status.pid})"
    when = f" at {status.finished}" if status.finished else ""
    why = f": {status.reason}" if status.reason else ""
    memory = ", out of memory" if status.oom else ""
    return f"{_end(status)}{memory}{when}{why}"


def _end(status: Status) -> str:
    if status.signal is not None:
        return f"killed by {signal_name(status.signal)}"
    return "ended" if status.exit_code is None else f"exited with {status.exit_code}"


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 40` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
