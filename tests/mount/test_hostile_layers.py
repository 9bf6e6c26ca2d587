"""Layers whose paths lead out of their tree. A real mount shows what an unprivileged umoci unpacks, inside the root.

No name and no link of a layer makes imgfs touch anything outside the state directory.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.testing.images import (
    DeviceFile,
    Dir,
    Entry,
    File,
    Hardlink,
    Image,
    Opaque,
    SparseFile,
    Symlink,
    Whiteout,
    image,
    layer,
)
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import PATIENCE, Mounted
from tests.support.programs import program
from tests.support.trees import Ignore, compare_trees, directory_mtimes, snapshot_tree, xattr

UNPRIVILEGED = 65534
LINKS_MAX = 40
CANARY = b"nobody may change this\n"
UP = "../" * 30
OUT = "/tmp/imgfs-canary-out"
"""Where hostile layers point: a path of this machine that stays as it is, absent."""

IGNORES = (
    Ignore("uid", "only root could give files away"),
    Ignore("gid", "only root could give files away"),
    xattr("user.rootlesscontainers", "where umoci notes the owner that it could not set"),
    directory_mtimes("umoci dates implicit directories by its clock"),
)

Layers = Sequence[Sequence[Entry]]


def chain(length: int) -> list[Entry]:
    """A file whose parent is reached over `length` links, each to the next, the last to the directory `end`."""
    links = [Symlink(f"link{number}", f"link{number + 1}") for number in range(1, length)]
    return [Dir("end"), *links, Symlink(f"link{length}", "end"), File("link1/file", b"reached")]


INSIDE: dict[str, tuple[Layers, dict[str, bytes]]] = {
    "name goes up": ([[File(f"{UP}escaped", b"1")]], {"escaped": b"1"}),
    "name goes up in the middle": ([[File(f"a/b/{UP}escaped", b"1")]], {"escaped": b"1"}),
    "name is absolute": ([[File(f"{OUT}/escaped", b"1")]], {f"{OUT[1:]}/escaped": b"1"}),
    "name has more slashes": ([[File("//etc///passwd", b"1")]], {"etc/passwd": b"1"}),
    "parent is a link upwards": ([[Symlink("up", UP), File("up/escaped", b"1")]], {"escaped": b"1"}),
    "parent is a link to an absolute path": (
        [[Symlink("out", OUT), File("out/escaped", b"1")]],
        {f"{OUT[1:]}/escaped": b"1"},
    ),
    "parent is a link of a lower layer": (
        [[Symlink("out", f"{UP}{OUT}")], [File("out/escaped", b"1")]],
        {f"{OUT[1:]}/escaped": b"1"},
    ),
    "parents are links to links": (
        [[Symlink("a", "b/c"), Dir("b"), Symlink("b/c", UP), File("a/escaped", b"1")]],
        {"escaped": b"1"},
    ),
    "link in the middle of a path": (
        [[Dir("a"), Symlink("a/b", "../../.."), File("a/b/etc/passwd", b"1")]],
        {"etc/passwd": b"1"},
    ),
    "link in a directory behind a link out": (
        [[Symlink("out", OUT), Dir("out/d"), Symlink("out/d/s", "/etc/shadow")]],
        {},
    ),
    "directory replaces a link out": (
        [[Symlink("d", OUT)], [Dir("d"), File("d/escaped", b"1")]],
        {"d/escaped": b"1"},
    ),
    "file replaces a link out": ([[Symlink("f", f"{OUT}/f")], [File("f", b"1")]], {"f": b"1"}),
    "file replaces a link out in one layer": ([[Symlink("f", f"{OUT}/f"), File("f", b"1")]], {"f": b"1"}),
    "hard link to a name that goes up": (
        [[File("etc/passwd", b"own"), Hardlink("h", f"{UP}etc/passwd")]],
        {"etc/passwd": b"own", "h": b"own"},
    ),
    "hard link to an absolute name": (
        [[File("etc/passwd", b"own"), Hardlink("h", "/etc/passwd")]],
        {"etc/passwd": b"own", "h": b"own"},
    ),
    "hard link through a link out": (
        [[File("etc/passwd", b"own"), Symlink("out", "/etc"), Hardlink("h", "out/passwd")]],
        {"etc/passwd": b"own", "h": b"own"},
    ),
    "hard link to a link is the link": ([[Symlink("s", "/etc/shadow"), Hardlink("h", "s")]], {}),
    "hard link in a directory reached by a link": (
        [[File("f", b"1"), Symlink("up", UP), Hardlink("up/h", "f")]],
        {"f": b"1", "h": b"1"},
    ),
    "whiteout through a link out": (
        [[File("etc/passwd", b"1"), File("etc/kept", b"2"), Symlink("out", "/etc")], [Whiteout("out/passwd")]],
        {"etc/kept": b"2"},
    ),
    "whiteout whose name goes up": (
        [[File("etc/passwd", b"1"), File("etc/kept", b"2")], [Whiteout(f"{UP}etc/passwd")]],
        {"etc/kept": b"2"},
    ),
    "whiteout of nothing": ([[File("a", b"1")], [Whiteout("b"), Whiteout("c/d/e")]], {"a": b"1"}),
    "opaque through a link out": (
        [[File("etc/passwd", b"1"), File("kept", b"2"), Symlink("out", "/etc")], [Opaque("out")]],
        {"kept": b"2"},
    ),
    "link to itself": ([[Symlink("loop", "loop"), File("f", b"1")]], {"f": b"1"}),
    "links out are kept as they are": (
        [[Symlink("a", "/etc/shadow"), Symlink("b", f"{UP}etc/shadow"), Symlink("c", OUT)]],
        {},
    ),
    "as many links on the way as a kernel follows": ([chain(LINKS_MAX)], {"end/file": b"reached"}),
    "sparse file whose name goes up": (
        [[SparseFile(f"{UP}escaped", 8192, ((4096, b"s" * 512),))]],
        {"escaped": bytes(4096) + b"s" * 512 + bytes(3584)},
    ),
}

REFUSED: dict[str, Layers] = {
    "hard link to a file of the machine": [[Hardlink("h", "/etc/passwd")]],
    "hard link upwards to a file of the machine": [[Hardlink("h", f"{UP}etc/passwd")]],
    "hard link to a file of the machine through a link": [[Symlink("out", "/etc"), Hardlink("h", "out/passwd")]],
    "hard link to a directory": [[Dir("d"), Hardlink("h", "d")]],
    "parent is a loop of links": [[Symlink("a", "b"), Symlink("b", "a"), File("a/f", b"1")]],
    "parent is a link to itself": [[Symlink("a", "a")], [File("a/f", b"1")]],
    "parent is a file": [[File("f", b"1"), File("f/g", b"2")]],
    "parent is a link to a file": [[File("f", b"1"), Symlink("l", "f"), File("l/g", b"2")]],
    "parent is a file of a lower layer": [[File("f", b"1")], [File("f/g", b"2")]],
}


@dataclass(frozen=True, slots=True)
class Scene:
    """A registry and a mount below `top`. No other file may appear there."""

    top: Path
    registry: FakeRegistry
    mounted: Mounted

    def rootfs(self, built: Image) -> Path:
        """The name's path to the rootfs of a new image."""
        repository = f"hostile{len(self.registry.log)}"
        built.add_to(self.registry, repository, "1")
        return self.mounted.rootfs(f"{self.registry.host}/{repository}:1")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One mount for all layers, which must survive each of them. The files around it must not change."""
    top = tmp_path_factory.mktemp("hostile")
    (top / "canary").write_bytes(CANARY)
    before = [os.stat(path) for path in (top / "canary", "/etc/passwd", "/etc", "/")]
    with FakeRegistry() as registry, Mounted(top) as mounted:
        mounted.start()
        yield Scene(top, registry, mounted)
        assert "Traceback" not in mounted.log()
    after = [os.stat(path) for path in (top / "canary", "/etc/passwd", "/etc", "/")]
    assert [(one.st_mtime_ns, one.st_nlink) for one in after] == [(one.st_mtime_ns, one.st_nlink) for one in before]
    assert (top / "canary").read_bytes() == CANARY
    assert sorted(os.listdir(top)) == ["canary", "mnt", "state"]
    assert not os.path.lexists(OUT)
    assert not os.path.lexists("/escaped")
    assert {path.name for path in (top / "state/layers").glob("*/*/*")} == {"tar", "index"}


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a directory of the unprivileged user."""
    path = Path(tempfile.mkdtemp(prefix="imgfs-hostile-"))
    try:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        yield path
    finally:
        shutil.rmtree(path)


def of(layers: Layers) -> Image:
    """Return an image of these layers."""
    return image([layer(entries) for entries in layers])


def unprivileged_umoci(built: Image, home: Path) -> subprocess.CompletedProcess[str]:
    """Unpack into home/rootfs as an unprivileged user."""
    built.write_layout(home / "layout", "it")
    become = [program("setpriv"), f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups"]
    unpack = [program("umoci"), "raw", "unpack", "--rootless", "--image", f"{home}/layout:it", str(home / "rootfs")]
    return subprocess.run([*become, *unpack], capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=home)


@pytest.mark.parametrize("case", INSIDE)
def test_the_tree_stays_inside_and_is_what_umoci_unpacks(scene: Scene, home: Path, case: str) -> None:
    layers, files = INSIDE[case]
    actual = snapshot_tree(os.path.realpath(scene.rootfs(of(layers)), strict=True))
    found = {os.fsdecode(path): node for path, node in actual.items() if node.kind == "file"}
    assert found.keys() == files.keys()
    assert {path: node.size for path, node in found.items()} == {path: len(data) for path, data in files.items()}
    unpacked = unprivileged_umoci(of(layers), home)
    assert unpacked.returncode == 0, unpacked.stderr
    assert compare_trees(snapshot_tree(home / "rootfs"), actual, IGNORES) == []


@pytest.mark.parametrize("case", INSIDE)
def test_files_of_the_tree_are_read_right(scene: Scene, case: str) -> None:
    layers, files = INSIDE[case]
    rootfs = Path(os.path.realpath(scene.rootfs(of(layers)), strict=True))
    assert {path: (rootfs / path).read_bytes() for path in files} == files


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_unpacked_is_refused_and_says_why(scene: Scene, home: Path, case: str) -> None:
    rootfs = scene.rootfs(of(REFUSED[case]))
    with pytest.raises(OSError) as caught:
        os.listdir(rootfs)
    assert caught.value.errno == errno.EBADMSG
    assert (rootfs.parent / "manifest.json").read_bytes() == of(REFUSED[case]).document
    assert "layer " in os.getxattr(rootfs.parent, "user.imgfs.error").decode()
    assert unprivileged_umoci(of(REFUSED[case]), home).returncode != 0


def test_more_links_on_the_way_than_a_kernel_follows_are_refused(scene: Scene) -> None:
    with pytest.raises(OSError) as caught:
        os.listdir(scene.rootfs(of([chain(LINKS_MAX + 1)])))
    assert caught.value.errno == errno.EBADMSG


def test_a_refused_image_harms_no_other(scene: Scene) -> None:
    refused = scene.rootfs(of([[File("shared", b"good")], [Hardlink("h", "/etc/passwd")]]))
    with pytest.raises(OSError):
        os.listdir(refused)
    good = scene.rootfs(of([[File("shared", b"good")], [File("own", b"1")]]))
    assert (good / "shared").read_bytes() == b"good"
    assert sorted(os.listdir(good)) == ["own", "shared"]


def test_marks_that_hide_nothing_do_not_show(scene: Scene) -> None:
    lower: list[Entry] = [Dir("d"), File("d/file", b"kept"), File("..kept", b"kept")]
    marks: list[Entry] = [File(f"{parent}{mark}") for parent in ("", "d/") for mark in (".wh.", ".wh..", ".wh...")]
    aufs: list[Entry] = [Dir(".wh..wh.plnk"), File(".wh..wh.plnk/1.2", b"x"), File("d/.wh..wh.aufs")]
    rootfs = scene.rootfs(of([lower, [*marks, *aufs, File("d/.whole", b"plain")]]))
    assert sorted(os.listdir(rootfs)) == ["..kept", "d"]
    assert sorted(os.listdir(rootfs / "d")) == [".whole", "file"]


def test_whiteouts_hide_lower_layers_only_wherever_they_stand(scene: Scene) -> None:
    lower: list[Entry] = [File("a", b"lower"), Dir("d"), File("d/old", b"lower")]
    upper: list[Entry] = [Whiteout("a"), File("a", b"upper"), File("d/new", b"upper"), Opaque("d"), Whiteout("d/new")]
    rootfs = scene.rootfs(of([lower, upper]))
    assert (rootfs / "a").read_bytes() == b"upper"
    assert os.listdir(rootfs / "d") == ["new"]


def test_opaque_root_hides_every_lower_layer(scene: Scene) -> None:
    rootfs = scene.rootfs(of([[File("a"), Dir("d"), File("d/b")], [File("c")], [Opaque(""), File("new")]]))
    assert os.listdir(rootfs) == ["new"]


def test_device_that_overlay_takes_for_a_whiteout_is_left_out(scene: Scene) -> None:
    nodes = [
        DeviceFile("hidden", "character", 0, 0),
        DeviceFile("block", "block", 0, 0),
        DeviceFile("null", "character", 1, 3),
    ]
    rootfs = scene.rootfs(of([nodes]))
    assert sorted(os.listdir(rootfs)) == ["block", "null"]
    assert stat.S_ISBLK((rootfs / "block").lstat().st_mode)


def test_attributes_that_overlay_obeys_are_dropped(scene: Scene) -> None:
    attributes = {
        "trusted.overlay.redirect": b"/etc",
        "trusted.overlay.opaque": b"y",
        "trusted.own": b"1",
        "user.overlay.metacopy": b"",
        "security.capability": b"malformed",
        "system.posix_acl_access": b"malformed",
        "user.kept": b"1",
    }
    rootfs = scene.rootfs(of([[File("f", xattrs=attributes), Dir("d", xattrs=attributes)]]))
    for name in ("f", "d"):
        assert os.listxattr(rootfs / name) == ["user.kept"]


def test_hard_link_to_itself_is_the_file(scene: Scene) -> None:
    rootfs = scene.rootfs(of([[File("a", b"1"), Hardlink("a", "a")]]))
    assert (rootfs / "a").read_bytes() == b"1"
    assert (rootfs / "a").stat().st_nlink == 1


def test_last_of_many_duplicates_wins(scene: Scene) -> None:
    entries: list[Entry] = [File("f", b"%d" % number) for number in range(3000)]
    entries += [Dir("f"), File("f/inside", b"1"), Symlink("f", OUT), File("f", b"last")]
    rootfs = scene.rootfs(of([entries]))
    assert os.listdir(rootfs) == ["f"]
    assert (rootfs / "f").read_bytes() == b"last"
