"""The cache timeout of the attributes of a chain's rootfs, which decides which walks reach the daemon and mount it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from imgfs.fs.node import ENDLESS, SOON, Shown
from imgfs.fs.snapshots.chain import ChainRootfs
from imgfs.fs.subsystems import ChainSubsystems
from imgfs.oci.digest import Digest
from imgfs.snapshots.graph import Snapshot

CHAIN = Snapshot(1, Digest.of(b"chain"), None, None, None, 0)


@dataclass
class FakeChains:
    is_mounting: bool
    bound: bool

    def is_bound(self, _: Snapshot) -> bool:
        return self.bound


@dataclass
class FakeRootfs:
    chains: FakeChains


class NoViews:
    def kept(self, _: Snapshot) -> None:
        return None


@dataclass
class FakeSubsystems:
    rootfs: FakeRootfs
    views: NoViews = field(default_factory=NoViews)
    shown: Shown = field(default_factory=lambda: Shown(0, 0, 0))


@pytest.mark.parametrize(
    ("is_mounting", "bound", "seconds"),
    [
        pytest.param(False, False, ENDLESS, id="nothing is ever mounted"),
        pytest.param(True, False, 0.0, id="each walk is to come by"),
        pytest.param(True, True, SOON, id="under its own mount paths ask nobody"),
    ],
)
async def test_the_kernel_keeps_the_attributes_of_a_rootfs(is_mounting: bool, bound: bool, seconds: float) -> None:
    subsystems = cast(ChainSubsystems, FakeSubsystems(FakeRootfs(FakeChains(is_mounting, bound))))
    entry = await ChainRootfs(subsystems, CHAIN, 2).attributes()
    assert entry.attr_timeout == pytest.approx(seconds)
