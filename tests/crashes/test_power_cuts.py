"""Power cuts while a daemon works, on real filesystems: acknowledged operations are there after the next boot.

`./scripts/test tests/crashes/test_power_cuts.py --crashes 100 -s` is the full run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from imgfs.kernel.mounts import mount_at, unmount
from imgfs.testing.registry import FakeRegistry
from tests.crashes.crew import Crew, assert_bounded, start
from tests.crashes.figures import FIGURES
from tests.crashes.strikes import kill, kill_process
from tests.mount.scene import CONFIG, Scene
from tests.support.mounted import Mounted
from tests.support.power import Disk

A_FEW = 2
KINDS = ("ext4", "xfs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cut" in metafunc.fixturenames:
        metafunc.parametrize("cut", range(metafunc.config.getoption("--crashes") or A_FEW))


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    made = Disk(tmp_path_factory.mktemp(request.param), request.param)
    made.mount()
    yield made
    made.unmount()


@pytest.fixture(scope="module")
def scene(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with FakeRegistry() as registry, Mounted(tmp_path_factory.mktemp("cuts")) as mount:
        mount.state = disk.at / "state"
        mount.state.mkdir(mode=0o700)
        (mount.state / "imgfs.toml").write_text(CONFIG)
        mount.start()
        yield Scene(registry, mount)


def test_what_was_acknowledged_is_there_after_the_next_boot(
    disk: Disk, scene: Scene, crew: Crew, seed: int, cut: int
) -> None:
    chance = random.Random(f"{seed} {cut}")
    before = crew.acknowledged

    pid = scene.mount.pid()
    assert pid is not None

    def dark() -> None:
        # Workers meet the dead disk until the daemon dies: by a database page that cannot be read, or by the kill
        # below.
        crew.hear_nothing_more()
        disk.cut_power()
        FIGURES.counts["daemons that died of it by themselves"] += not kill_process(pid)

    crew.work(chance.randrange(20, 250), dark)
    crew.refused.clear()
    take_away(scene.mount)
    disk.unmount()
    disk.mount()
    FIGURES.took("start after a power cut", start(scene))
    crew.judge(power_cut=True)
    assert_bounded(scene)
    FIGURES.counts["acknowledged operations"] += crew.acknowledged - before


def take_away(mount: Mounted) -> None:
    """Unmount the tree of a dead daemon and all mounts in it, because they keep the disk busy."""
    with suppress(OSError):
        kill(mount)
    while mount_at(str(mount.path)):
        unmount(str(mount.path), detach=True)
