"""snapshots/ lists every prefix of a chain by its chain ID, as a read-only view."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest, chain_ids
from imgfs.testing.build import Image, image
from tests.mount.scene import Scene, refused, run, serving, small, succeed


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("snapshots")) as made:
        yield made


@pytest.fixture(scope="module")
def pulled(scene: Scene) -> Image:
    made = small("chain", layers=3)
    os.listdir(f"{scene.serve(made, 'chain')}/rootfs/")
    return made


def chain(scene: Scene, made: Image) -> list[Path]:
    """Return the snapshots of an image, base first."""
    return [scene.mount.snapshots / one for one in chain_ids(made.diff_ids)]


def test_every_prefix_of_the_chain_is_listed(scene: Scene, pulled: Image) -> None:
    assert {path.name for path in chain(scene, pulled)} <= set(os.listdir(scene.mount.snapshots))


def test_no_snapshot_is_listed_before_its_layers_are_stored(scene: Scene) -> None:
    made = small("unpulled", layers=2)
    os.stat(scene.serve(made, "unpulled"))
    with scene.silence():
        assert not {path.name for path in chain(scene, made)} & set(os.listdir(scene.mount.snapshots))
        for path in chain(scene, made):
            with refused(errno.ENOENT):
                os.stat(path)


def test_parents_are_links_down_the_chain(scene: Scene, pulled: Image) -> None:
    paths = chain(scene, pulled)
    for parent, path in pairwise(paths):
        assert os.readlink(path / "parent") == f"../{parent.name}"
        assert sorted(os.listdir(path)) == ["diff", "parent", "rootfs"]
    assert sorted(os.listdir(paths[0])) == ["diff", "rootfs"]
    with refused(errno.ENOENT):
        os.readlink(paths[0] / "parent")
    assert os.path.samefile(paths[2] / "parent/parent/rootfs", paths[0] / "rootfs")


def test_each_snapshot_shows_only_its_own_layers(scene: Scene, pulled: Image) -> None:
    with scene.silence():
        for number, path in enumerate(chain(scene, pulled)):
            assert sorted(os.listdir(path / "rootfs")) == sorted([*map(str, range(number + 1)), "mark"])
            assert (path / "rootfs/mark").read_text() == f"chain/{number}\n"
            assert (path / f"rootfs/{number}/link").read_text() == f"file of chain/{number}\n" * 100


def test_a_snapshot_is_walked_by_its_own_path(scene: Scene, pulled: Image) -> None:
    top = chain(scene, pulled)[-1]
    with scene.silence():
        assert os.path.samefile(f"{scene.name('chain')}/rootfs/", top / "rootfs")
        found = succeed("find", top / "rootfs", "-type", "f")
        assert len(found.splitlines()) == 4
        succeed("tar", "-cf", "/dev/null", "-C", top, ".")
        succeed("du", "-s", top)


def test_the_link_of_an_image_is_unlisted_and_leads_to_the_chain_id(scene: Scene, pulled: Image) -> None:
    link = scene.mount.snapshots / f"{pulled.digest}@linux-amd64"
    assert link.name not in os.listdir(link.parent)
    with scene.silence():
        assert os.readlink(link) == chain(scene, pulled)[-1].name


@pytest.mark.parametrize(
    "name",
    [
        Digest.of(b"nobody's"),
        f"{Digest.of(b'no image')}@linux-amd64",
        "x",
        "sha256:12",
        "@",
        "x@linux-amd64",
        ".hidden",
    ],
)
def test_unknown_snapshots_are_absent(scene: Scene, name: str) -> None:
    with scene.silence(), refused(errno.ENOENT):
        os.lstat(scene.mount.snapshots / name)


@pytest.mark.parametrize("slug", ["", "linux", "linux-", "a-b-c-d", "..", "linux-amd64-"])
def test_links_of_no_platform_are_absent(scene: Scene, pulled: Image, slug: str) -> None:
    with scene.silence(), refused(errno.ENOENT):
        os.lstat(scene.mount.snapshots / f"{pulled.digest}@{slug}")


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda root: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "symlink": lambda root: os.symlink("x", root / "new"),
    "hard link": lambda root: os.link(root / "mark", root / "new"),
    "fifo": lambda root: os.mkfifo(root / "new"),
    "socket": lambda root: _bind(root / "new"),
    "unlink": lambda root: os.unlink(root / "mark"),
    "rmdir": lambda root: os.rmdir(root / "0"),
    "rename": lambda root: os.rename(root / "mark", root / "new"),
    "rename over": lambda root: os.rename(root / "mark", root / "0/file"),
    "write": lambda root: os.open(root / "mark", os.O_WRONLY),
    "read and write": lambda root: os.open(root / "mark", os.O_RDWR),
    "open to truncate": lambda root: os.open(root / "mark", os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda root: os.truncate(root / "mark", 0),
    "chmod": lambda root: os.chmod(root / "mark", 0o600),
    "chmod of the root": lambda root: os.chmod(root, 0o700),
    "chown": lambda root: os.chown(root / "mark", 1, 1),
    "chown of a link": lambda root: os.lchown(root / "0/link", 1, 1),
    "utime": lambda root: os.utime(root / "mark", (0, 0)),
    "setxattr": lambda root: os.setxattr(root / "mark", "user.x", b"1"),
    "removexattr": lambda root: os.removexattr(root / "mark", "user.x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_view_is_refused_as_read_only(scene: Scene, pulled: Image, change: str) -> None:
    root = chain(scene, pulled)[0] / "rootfs"
    with refused(errno.EROFS):
        CHANGES[change](root)
    assert (root / "mark").read_text() == "chain/0\n"


def test_removing_a_view_removes_nothing(scene: Scene, pulled: Image) -> None:
    root = chain(scene, pulled)[0] / "rootfs"
    before = succeed("ls", "-lR", root)
    assert run("rm", "-rf", root).returncode != 0
    assert succeed("ls", "-lR", root) == before


def test_an_image_without_layers_has_an_empty_rootfs(scene: Scene) -> None:
    name = scene.serve(image([]), "empty")
    assert os.listdir(f"{name}/rootfs/") == []


def test_images_share_the_snapshots_of_their_common_layers(scene: Scene, pulled: Image) -> None:
    shorter = image(pulled.layers[:2])
    name = scene.serve(shorter, "shorter")
    with scene.requests("manifest", "blob"):
        assert os.path.samefile(f"{name}/rootfs/", chain(scene, pulled)[1] / "rootfs")


def test_numbers_and_contents_are_the_same_after_a_remount(scene: Scene, pulled: Image) -> None:
    top = chain(scene, pulled)[-1]
    before = succeed("ls", "-liR", f"{top}/rootfs/")
    outside = {path: os.lstat(path).st_ino for path in (top, top / "parent", scene.name("chain"), scene.images)}
    scene.mount.stop()
    scene.mount.start()
    with scene.silence():
        assert succeed("ls", "-liR", f"{top}/rootfs/") == before
        assert {path: os.lstat(path).st_ino for path in outside} == outside


def test_an_open_file_of_a_view_is_readable_after_its_name_and_blob_are_removed(scene: Scene) -> None:
    made = small("going")
    name = scene.serve(made, "going")
    with (name / "rootfs/0/file").open("rb", buffering=0) as file:
        (name / "layers/0").read_bytes()
        os.unlink(scene.blob(made.layers[0].digest))
        os.unlink(name)
        assert file.read() == b"file of going/0\n" * 100
