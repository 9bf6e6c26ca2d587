"""The directory beneath a user's mount is never listed: callers would take it for an empty snapshot."""

from __future__ import annotations

import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from imgfs.fs.caller import Caller, Waiters
from imgfs.fs.node import Stale
from imgfs.fs.snapshots.mountpoint import Mountpoint
from imgfs.fs.subsystems import UserSubsystems
from imgfs.rootfs.places import Places, rootfs_of
from tests.rootfs.fakes import FakeKernel


class Mounting:
    """Records which snapshots were mounted."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    async def show(self, id: str) -> bool:
        self.shown.append(id)
        return True


def mountpoint(mounting: Mounting, nursery: trio.Nursery) -> Mountpoint:
    subsystems = SimpleNamespace(
        snapshots=SimpleNamespace(numbered=lambda number: SimpleNamespace(id=f"snap{number}")),
        failures=SimpleNamespace(noting=lambda subject: nullcontext()),
        rootfs=SimpleNamespace(places=Places("/mnt", nursery, FakeKernel())),
    )
    return Mountpoint(cast(UserSubsystems, subsystems), 7, "rootfs", mounting.show, rootfs_of)


async def test_listing_it_mounts_and_has_the_path_walked_again(nursery: trio.Nursery) -> None:
    mounting = Mounting()
    stranger = Caller(os.getppid(), 0, Waiters(trio.Event()))
    with pytest.raises(Stale):
        await mountpoint(mounting, nursery).entries(stranger)
    assert mounting.shown == ["snap7"]


async def test_the_daemon_on_its_way_to_mount_passes(nursery: trio.Nursery) -> None:
    mounting = Mounting()
    assert await mountpoint(mounting, nursery).entries(Caller(os.getpid(), 0, Waiters(trio.Event()))) == []
    assert mounting.shown == []
