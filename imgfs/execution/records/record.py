"""What is kept of a container, as JSON: how it was made, what became of it, and both together once it is deleted.

Pure values; where they lie and how they reach the disk is records.py's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Literal, TypeVar

import msgspec

from imgfs.errors import StorageFailed

T = TypeVar("T")
State = Literal["created", "running", "stopped"]
LOST = "the supervisor was killed; the exit status is not known"
"""The reason of a container that ended with nobody there to be told how."""


class InstalledRuntime(msgspec.Struct, frozen=True):
    """The OCI runtime that a container was given to: its name, and the program."""

    name: str
    path: str


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """`container.json`: what a container is. `snapshot` is its key under snapshots/active/."""

    id: str
    image: str
    """The image as it was asked for."""
    digest: str
    platform: str
    chain: str
    snapshot: str
    created: str
    args: list[str]
    tty: bool
    detach: bool
    remove: bool
    """Whether it is deleted as soon as it has ended."""
    runtime: InstalledRuntime
    stop_signal: str
    labels: dict[str, str]
    mountpoint: str

    @property
    def runtime_id(self) -> str:
        """What its runtime knows it by. No other ever had it, so an id is free before the runtime has forgotten."""
        return self.snapshot


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`status.json`: what became of it, as its supervisor saw it.

    `exit_code` is what a shell would say: 128 + n after signal n. It is None where nobody knows.
    """

    status: State
    pid: int | None = None
    start_time: int | None = None
    """When the process `pid` was started, by proc_pid_stat(5), field 22: a pid alone may be another's by now."""
    started: str | None = None
    finished: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    """Whether the kernel killed a process in it for want of memory."""
    reason: str = ""


class DeletedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """`deleted/containers/<id>.json`: what stays of a container that was deleted, until it is collected."""

    container: Container
    status: ContainerStatus
    deleted: str

    def encode(self) -> bytes:
        """As one flat document: the keys of both."""
        facts = msgspec.structs.asdict(self.container) | msgspec.structs.asdict(self.status)
        return encode(facts | {"deleted": self.deleted})


def encode(value: object) -> bytes:
    """As JSON for people, with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode_container(data: bytes, subject: str) -> Container:
    """Read container.json. Raises StorageFailed: it is imgfs's own writing."""
    return _decode(data, Container, subject)


def decode_status(data: bytes, subject: str) -> ContainerStatus:
    """Read status.json. Raises StorageFailed."""
    return _decode(data, ContainerStatus, subject)


def decode_deleted(data: bytes, subject: str) -> DeletedContainer:
    """Read what Deleted.encode wrote. Raises StorageFailed."""
    facts = _decode(data, dict[str, msgspec.Raw], subject)
    deleted = _decode(bytes(facts.get("deleted", b'""')), str, subject)
    return DeletedContainer(
        container=_decode(data, Container, subject), status=_decode(data, ContainerStatus, subject), deleted=deleted
    )


def now() -> str:
    """This moment, RFC 3339 in nanoseconds."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _decode(data: bytes, shape: type[T], subject: str) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StorageFailed(f"{subject}: is damaged: {error}") from None
