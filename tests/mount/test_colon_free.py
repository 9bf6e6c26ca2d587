"""The colon-free spelling of every name with a colon: the same object, for the daemon's view and the kernel's."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.filename import with_colons, without_colons
from imgfs.oci.digest import Digest, chain_ids
from imgfs.testing.build import Image
from tests.mount.scene import CONFIG, Scene, refused, serving, small, until


@pytest.fixture(scope="module", params=["kernel", "fuse"])
def scene(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("colonfree"), f'{CONFIG}views = "{request.param}"\n') as made:
        yield made


def spelled(path: Path, scene: Scene) -> Path:
    """The colon-free spelling of a path of the tree."""
    return scene.mount.path / without_colons(str(path.relative_to(scene.mount.path)))


def top(made: Image, scene: Scene) -> Path:
    """The snapshot of an image by its chain ID."""
    return scene.mount.snapshots / chain_ids(made.diff_ids)[-1]


def mounts_below(path: Path) -> list[str]:
    """The lines of the kernel's table for mounts below `path`."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path}/" in line]


@pytest.mark.parametrize("first", ["with", "without"])
def test_a_chain_is_one_mounted_directory_by_both_names(scene: Scene, first: str) -> None:
    made = small(f"chain-{first}", layers=2)
    (scene.serve(made, f"chain-{first}") / "layers").stat()
    os.readlink(scene.mount.snapshots / f"{made.digest}@linux-amd64")
    os.setxattr(scene.mount.path / ".imgfs", "user.imgfs.views", b"unmount")
    colons = top(made, scene)
    free = spelled(colons, scene)
    assert ":" not in free.name
    paths = [colons, free] if first == "with" else [free, colons]
    for path in paths:
        assert (path / "rootfs/mark").read_text() == f"chain-{first}/1\n"
    found = [os.stat(path / "rootfs/mark") for path in (*paths, *paths)]
    assert len({(one.st_dev, one.st_ino) for one in found}) == 1
    assert os.path.samefile(colons, free)
    assert os.path.samefile(colons / "rootfs", free / "rootfs")
    assert free.name not in os.listdir(free.parent)
    assert os.path.realpath(free / "rootfs") == str(free / "rootfs")
    places = [line.split(" ")[4] for line in mounts_below(scene.mount.path)]
    assert len([place for place in places if with_colons(place) == f"{colons}/rootfs"]) == 1


def test_walkers_by_both_names_at_once_always_arrive(scene: Scene) -> None:
    made = small("crossing", layers=2)
    os.listdir(f"{scene.serve(made, 'crossing')}/rootfs/")
    colons = top(made, scene)
    failures: list[object] = []

    def walk(path: Path) -> None:
        for _ in range(300):
            try:
                assert (path / "rootfs/1/file").read_bytes()
                assert (path / "diff").is_dir()
            except Exception as error:  # noqa: BLE001 - any failure at all is what this test looks for
                failures.append(error)

    walkers = [threading.Thread(target=walk, args=[path]) for path in (colons, spelled(colons, scene)) * 2]
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join()
    assert failures == []


def test_the_link_of_an_image_leads_on_without_colons(scene: Scene) -> None:
    made = small("onward")
    os.stat(scene.serve(made, "onward"))
    link = scene.mount.snapshots / f"{without_colons(made.digest)}@linux-amd64"
    assert os.readlink(link) == without_colons(top(made, scene).name)
    assert os.path.realpath(link / "rootfs") == str(spelled(top(made, scene) / "rootfs", scene))
    assert (link / "rootfs/mark").read_text() == "onward/0\n"


def test_blobs_and_images_by_both_names(scene: Scene) -> None:
    made = small("blobs")
    name = scene.serve(made, "blobs")
    free = spelled(name, scene)
    assert os.stat(free).st_ino == os.stat(name).st_ino
    assert os.lstat(free).st_ino == os.lstat(name).st_ino
    assert os.readlink(free) == os.readlink(name)
    assert (free / "rootfs/mark").read_text() == "blobs/0\n"
    for path in (scene.directory(made.digest), scene.blob(made.digest)):
        assert os.stat(spelled(path, scene)).st_ino == os.stat(path).st_ino
    assert spelled(scene.blob(made.digest), scene).read_bytes() == made.document
    with refused(errno.ENOENT):
        os.stat(spelled(scene.blob(Digest.of(b"absent")), scene))


def test_an_unregistered_name_is_resolved_by_its_colon_free_spelling(scene: Scene) -> None:
    made = small("unseen")
    name = scene.serve(made, "unseen")
    with scene.requests("manifest"):
        os.stat(spelled(name, scene))
    with scene.silence():
        os.stat(name)
    assert name.name in os.listdir(name.parent)


def test_names_are_made_moved_and_removed_by_their_colon_free_spelling(scene: Scene) -> None:
    digest = Digest.of(b"tagged")
    os.symlink(without_colons(digest), scene.images / "tool%3Adev")
    assert os.readlink(scene.images / "tool:dev") == digest
    with refused(errno.EEXIST):
        os.symlink(digest, scene.images / "tool%3Adev")
    os.rename(scene.images / "tool%3Adev", scene.images / "tool%3Anext")
    assert "tool:next" in os.listdir(scene.images)
    os.unlink(scene.images / "tool%3Anext")
    with refused(errno.ENOENT):
        os.lstat(scene.images / "tool:next")
    with refused(errno.EINVAL):
        os.symlink(digest, scene.images / without_colons(Digest.of(b"no name")))


def test_an_ingest_is_committed_labelled_and_removed_by_the_colon_free_digest(scene: Scene) -> None:
    data = b"by another name"
    digest = Digest.of(data)
    ingest, free = scene.mount.content / "ingest", scene.mount.content / without_colons(digest)
    (ingest / f"layer-{digest}").write_bytes(data)
    assert os.stat(ingest / f"layer-{digest}".replace(":", "%3A")).st_size == len(data)
    until(lambda: os.rename(ingest / f"layer-{digest}".replace(":", "%3A"), free) is None)
    assert scene.blob(digest).read_bytes() == free.read_bytes() == data
    os.setxattr(free, "user.label.of", b"both")
    assert os.getxattr(scene.blob(digest), "user.label.of") == b"both"
    os.setxattr(scene.mount.content, "user.imgfs.label", f"{without_colons(digest)} by=door".encode())
    assert os.getxattr(scene.blob(digest), "user.label.by") == b"door"
    os.unlink(free)
    until(lambda: not scene.blob(digest).exists())
    assert not free.exists()


@pytest.mark.parametrize("free_first", [True, False])
def test_snapshots_of_users_are_prepared_committed_and_removed_by_both(scene: Scene, free_first: bool) -> None:
    mark = f"user-{int(free_first)}"
    made = small(mark)
    os.listdir(f"{scene.serve(made, mark)}/rootfs/")
    snapshots = scene.mount.snapshots
    first, second = ("a%3Ab", "a:b") if free_first else ("a:b", "a%3Ab")
    os.mkdir(snapshots / "active" / first)
    assert "a:b" in os.listdir(snapshots / "active")
    os.symlink(f"../../{without_colons(top(made, scene).name)}", snapshots / "active" / second / "parent")
    assert os.readlink(snapshots / "active/a:b/parent") == f"../../{top(made, scene).name}"
    os.setxattr(snapshots, "user.imgfs.label", f"active/{first.replace('%', '%25')} by=door".encode())
    assert os.getxattr(snapshots / "active" / second, "user.label.by") == b"door"
    (snapshots / "active" / first / "rootfs/new").write_text("written")
    assert (snapshots / "active" / second / "rootfs/new").read_text() == "written"
    os.rename(snapshots / "active" / first, snapshots / "done%3A1")
    assert "done:1" in os.listdir(snapshots)
    assert (snapshots / "done%3A1/rootfs/new").read_text() == "written"
    os.symlink("done%3A1", snapshots / "seen%3A1")
    assert os.readlink(snapshots / "seen:1") == "done:1"
    os.unlink(snapshots / "seen%3A1")
    assert (snapshots / "done:1/rootfs/new").read_text() == "written"
    os.rmdir(snapshots / ("done%3A1" if free_first else "done:1"))
    with refused(errno.ENOENT):
        os.stat(snapshots / "done:1")


def test_names_that_would_hide_a_chain_are_refused(scene: Scene) -> None:
    free = without_colons(Digest.of(b"some chain"))
    os.mkdir(scene.mount.snapshots / "active/fresh")
    with refused(errno.EPERM):
        os.rename(scene.mount.snapshots / "active/fresh", scene.mount.snapshots / free)
    with refused(errno.EINVAL):
        os.symlink("fresh", scene.mount.snapshots / free)
    os.rmdir(scene.mount.snapshots / "active/fresh")


def test_idle_views_go_whichever_name_was_used_last(tmp_path: Path) -> None:
    with serving(tmp_path, 'platform = "linux/amd64"\nview_idle_seconds = 1\n') as scene:
        made = small("idle")
        os.listdir(f"{scene.serve(made, 'idle')}/rootfs/")
        free = spelled(top(made, scene), scene)
        os.listdir(free / "rootfs")

        assert mounts_below(scene.mount.path)
        until(lambda: not mounts_below(scene.mount.path))
        assert (free / "rootfs/mark").read_text() == "idle/0\n"


def test_layers_referrers_and_leases_by_their_colon_free_names(scene: Scene) -> None:
    made = small("control")
    os.listdir(f"{scene.serve(made, 'control')}/rootfs/")
    layers, leases = scene.mount.path / ".imgfs/layers", scene.mount.path / ".imgfs/leases"
    assert os.stat(layers / without_colons(made.diff_ids[0])).st_ino == os.stat(layers / made.diff_ids[0]).st_ino
    (leases / "of%3Atwo").mkdir()
    os.symlink(f"../../../content/{without_colons(made.digest)}", leases / "of:two/pin%3A1")
    assert os.readlink(leases / "of:two/pin:1") == f"../../../content/{made.digest}"
    os.unlink(leases / "of%3Atwo/pin%3A1")
    os.rmdir(leases / "of%3Atwo")
    assert "of:two" not in os.listdir(leases)
