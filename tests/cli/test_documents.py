"""What commands read out of the tree has the keys that the daemon tells: they are declared twice on purpose.

A command does not load the daemon's rooms, so it says by itself what it reads.
"""

from __future__ import annotations

from typing import Any, NotRequired, get_origin, get_type_hints

import msgspec
import pytest

from imgfs.cli import tree
from imgfs.cli.containers import lookup
from imgfs.cli.images import push
from imgfs.execution.records.record import Container, ContainerStatus, DeletedContainer, InstalledRuntime
from imgfs.execution.state_documents import state_document
from imgfs.transfer.image_status import ImageStatus, PartStatus
from imgfs.transfer.push.report import PushPart, PushReport
from imgfs.transfer.transfer_status import TransferStatus

CONTAINER = Container(
    id="web",
    image="alpine",
    digest="sha256:1",
    platform="linux/amd64",
    chain="sha256:2",
    snapshot="web-1",
    created="2026-01-31T12:00:00Z",
    args=["sh"],
    tty=False,
    detach=True,
    remove=False,
    runtime=InstalledRuntime("crun", "/usr/bin/crun"),
    stop_signal="SIGTERM",
    labels={},
    mountpoint="/mnt",
)


def keys(declared: type) -> list[str]:
    return list(declared.__annotations__)


def required(declared: type) -> set[str]:
    hints = get_type_hints(declared, include_extras=True)
    return {key for key, hint in hints.items() if get_origin(hint) is not NotRequired}


@pytest.mark.parametrize(
    ("told", "read"),
    [
        (PartStatus, tree.ImagePart),
        (ImageStatus, tree.ImageStatus),
        (TransferStatus, tree.TransferDocument),
        (PushPart, push.PushedPart),
        (PushReport, push.PushDocument),
        (InstalledRuntime, lookup.RuntimeDocument),
    ],
    ids=lambda declared: f"{declared.__module__}.{declared.__name__}",
)
def test_a_command_reads_the_very_keys_that_are_told(told: type[msgspec.Struct], read: type) -> None:
    assert keys(read) == [field.encode_name for field in msgspec.structs.fields(told)]


@pytest.mark.parametrize("pid", [None, 1])
def test_a_command_knows_only_keys_of_a_container_that_are_told(pid: int | None) -> None:
    told = state_document(CONTAINER, ContainerStatus(status="running", pid=pid), "/bundle")
    assert required(lookup.ContainerState) <= told.keys()
    assert set(keys(lookup.ContainerState)) - told.keys() <= {"pid"}


def test_of_a_deleted_container_the_same_is_told_but_where_it_lies() -> None:
    deleted = DeletedContainer(
        container=CONTAINER, status=ContainerStatus(status="stopped"), deleted="2026-01-31T12:00:01Z"
    )
    told: dict[str, Any] = msgspec.json.decode(deleted.encode())
    assert required(lookup.ContainerState) <= told.keys()
