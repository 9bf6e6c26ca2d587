"""Concurrent walkers into new views, beside commits and removals. No walker waits for an unrelated operation."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgfs.testing.faults import stall
from tests.mount.kernel_views import chain_of, prepare, shown, shown_at
from tests.mount.scene import PATIENCE, Scene, serving, small, succeed
from tests.support.trees import compare_trees, snapshot_tree

IMAGES = 20
WALKERS = 50
ROUNDS = 12
_WALK = """
import os, sys
for top in sys.argv[1:]:
    assert sorted(os.listdir(top)) == ['0', '1', 'mark'], top
    for number in (0, 1):
        assert len(open(f'{top}/{number}/file', 'rb').read()) > 1000
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("races")) as made:
        yield made


def pulled(scene: Scene, repository: str) -> Path:
    """The snapshot of a pulled image that was never walked into."""
    made = small(repository, layers=2)
    (scene.serve(made, repository) / "pull").read_bytes()
    return chain_of(scene, made)


def kinds(scene: Scene) -> Counter[tuple[str, str]]:
    """Count the mounts of each filesystem type at each place."""
    return Counter((one.filesystem, one.mountpoint) for one in shown(scene.mount))


def test_fifty_processes_walk_into_twenty_images_during_listings(scene: Scene) -> None:
    """Half of the processes look up image names, which fetches the images; half walk from the snapshots."""
    made = [small(f"crowd/{number}", layers=2) for number in range(IMAGES)]
    tops = [str(scene.serve(one, f"crowd/{number}") / "rootfs") for number, one in enumerate(made)]
    command = [sys.executable, "-c", _WALK]
    orders = [tops[at % IMAGES :] + tops[: at % IMAGES] for at in range(WALKERS)]
    walkers = [subprocess.Popen([*command, *order], stderr=subprocess.PIPE) for order in orders]
    looked = 0
    while any(one.poll() is None for one in walkers):
        succeed("ls", scene.mount.snapshots, scene.images, scene.mount.content)
        assert (scene.mount.path / ".imgfs/version").read_bytes()
        looked += 1
    assert {(one.communicate(timeout=PATIENCE)[1], one.returncode) for one in walkers} == {(b"", 0)}
    assert looked > 1
    assert scene.registry.requests("blob") == 3 * IMAGES
    assert set(kinds(scene).values()) == {1}
    assert all(shown_at(scene.mount, chain_of(scene, one)) == ["erofs"] for one in made)


def test_many_walkers_into_one_new_view_make_one_mount(scene: Scene) -> None:
    for round in range(3):
        snapshot = pulled(scene, f"one/{round}")
        with ThreadPoolExecutor(WALKERS) as pool:
            found = pool.map(os.listdir, [snapshot / "rootfs"] * WALKERS)
        assert {tuple(sorted(names)) for names in found} == {("0", "1", "mark")}
        assert shown_at(scene.mount, snapshot) == ["erofs"]


def test_many_walkers_into_one_new_active_snapshot_make_one_mount(scene: Scene) -> None:
    snapshot = pulled(scene, "active")
    directory = prepare(scene, "many", snapshot.name)
    with ThreadPoolExecutor(WALKERS) as pool:
        paths = [directory / f"rootfs/{at}" for at in range(2, WALKERS)]
        assert list(pool.map(lambda path: path.write_bytes(b"x"), paths))
    assert shown_at(scene.mount, directory) == ["overlay"]
    assert len(os.listdir(directory / "rootfs")) == WALKERS + 1


def test_a_stalled_image_does_not_block_walks_into_other_views(scene: Scene) -> None:
    stuck = small("stuck")
    name = scene.serve(stuck, "stuck")
    snapshot = pulled(scene, "not-stuck")
    scene.registry.fault(stall(), stuck.layers[0].digest)
    with subprocess.Popen(["ls", f"{name}/rootfs/"], stdout=subprocess.PIPE) as process:
        assert scene.registry.valve.wait_arrival()
        assert (snapshot / "rootfs/mark").read_bytes() == b"not-stuck/1\n"
        assert sorted(os.listdir(prepare(scene, "beside", snapshot.name) / "rootfs")) == ["0", "1", "mark"]
        scene.registry.release()
        assert process.communicate(timeout=PATIENCE)[0] == b"0\nmark\n"


def test_commits_during_walks_lose_no_data(scene: Scene) -> None:
    """A commit either fails with EBUSY or completes. Walkers see the whole snapshot or none of it."""
    snapshot = pulled(scene, "commits")
    with ThreadPoolExecutor(4) as pool:
        for round in range(ROUNDS):
            directory = prepare(scene, f"c{round}", snapshot.name)
            (directory / "rootfs/new").write_bytes(b"%d" % round)
            walks = [pool.submit(walk, directory / "rootfs", b"%d" % round) for _ in range(4)]
            target = scene.mount.snapshots / f"done-{round}"
            commit(directory, target)
            assert {one.result() for one in walks} <= {None, errno.ENOENT, errno.ESTALE, errno.EBUSY}
            assert (target / "rootfs/new").read_bytes() == b"%d" % round
            assert shown_at(scene.mount, target) == ["overlay"]
            assert shown_at(scene.mount, directory) == []


def walk(rootfs: Path, expected: bytes) -> int | None:
    """Read up to 30 times. Return the errno of the first failure, or None."""
    for _ in range(30):
        try:
            assert (rootfs / "new").read_bytes() == expected
            assert len(os.listdir(rootfs)) == 4
        except OSError as error:
            return error.errno
    return None


def commit(directory: Path, target: Path) -> None:
    """Rename, and retry while it is busy."""
    for _ in range(10_000):
        try:
            os.rename(directory, target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return
    raise AssertionError(f"{directory}: stays busy")


def test_removals_during_walks_leave_nothing(scene: Scene) -> None:
    snapshot = pulled(scene, "removals")
    with ThreadPoolExecutor(4) as pool:
        for round in range(ROUNDS):
            directory = prepare(scene, f"r{round}", snapshot.name)
            walks = [pool.submit(walk_into, directory / "rootfs") for _ in range(4)]
            remove(directory)
            assert {one.result() for one in walks} <= {None, errno.ENOENT, errno.ESTALE, errno.EBUSY}
            assert shown_at(scene.mount, directory) == []
            assert not directory.exists()


def walk_into(rootfs: Path) -> int | None:
    try:
        assert len(os.listdir(rootfs)) == 3
    except OSError as error:
        return error.errno
    return None


def remove(directory: Path) -> None:
    """Remove, and retry while it is busy."""
    for _ in range(10_000):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return
    raise AssertionError(f"{directory}: stays busy")


def test_an_umount_during_walks_is_busy_or_complete(scene: Scene) -> None:
    snapshot = pulled(scene, "ends")
    expected = snapshot_tree(snapshot / "rootfs")
    with ThreadPoolExecutor(2) as pool:
        walks = [pool.submit(walk_into, snapshot / "rootfs") for _ in range(20)]
        done = scene.mount.run("umount", str(scene.mount.path))
        assert done.returncode in (0, 7), done.stderr
        assert {one.result() for one in walks} <= {None, errno.ENOENT, errno.ESTALE, errno.EBUSY, errno.ENOTCONN}
    if done.returncode == 0:
        assert shown(scene.mount) == []
        scene.mount.start()
    assert compare_trees(expected, snapshot_tree(snapshot / "rootfs")) == []
