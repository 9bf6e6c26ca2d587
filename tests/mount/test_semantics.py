"""The errno of each refused call, as docs/reference/SEMANTICS.md lists it by path: one row a call, on a real mount."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgfs.filename import without_colons
from imgfs.oci.digest import Digest
from tests.mount.ingesting import put
from tests.mount.scene import Scene, refused, serving, small

Call = Callable[[Path], object]
ANYBODY = 2**32 - 1
UNKNOWN = f"sha256:{'0' * 64}"
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, ANYBODY, 2, 4, 1000, 4, 4, ANYBODY, 16, 4, ANYBODY, 32, 0, ANYBODY)
"""user::rw- user:1000:r-- group::r-- mask::r-- other::---"""

IMAGE = small("semantics", layers=2)
DIGEST = IMAGE.digest
BLOB = Digest.of(IMAGE.config)


def create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def write_at(path: Path, offset: int) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(file, b"x", offset)
    finally:
        os.close(file)


def move(before: str, after: str) -> Call:
    return lambda top: os.rename(top / before, top / after)


NAME = "images/HOST/app:1"
ROWS: dict[str, tuple[int, Call]] = {
    # Everywhere.
    "mkdir at the top": (errno.EPERM, lambda top: os.mkdir(top / "x")),
    "rmdir of images": (errno.EPERM, lambda top: os.rmdir(top / "images")),
    "link": (errno.EPERM, lambda top: os.link(top / "content" / BLOB, top / "content/x")),
    "mknod of a pipe": (errno.EPERM, lambda top: os.mkfifo(top / "content/ingest/pipe")),
    "attribute that imgfs maintains": (
        errno.EPERM,
        lambda top: os.setxattr(top / "content" / BLOB, "user.imgfs.size", b"1"),
    ),
    "attribute that does not exist": (
        errno.ENODATA,
        lambda top: os.getxattr(top / "content" / BLOB, "user.imgfs.no"),
    ),
    "SELinux label outside of a rootfs": (
        errno.EOPNOTSUPP,
        lambda top: os.getxattr(top / "content" / BLOB, "security.selinux"),
    ),
    # images/
    "lookup of a malformed name": (errno.ENOENT, lambda top: os.lstat(top / "images/HOST/App::1")),
    "lookup of an unknown local name": (errno.ENOENT, lambda top: os.lstat(top / "images/word")),
    "lookup of an unknown digest": (errno.ENOENT, lambda top: os.lstat(top / "images" / UNKNOWN)),
    "lookup of an unknown tag": (errno.ENOENT, lambda top: os.lstat(top / "images/HOST/app:no")),
    "name that exists": (errno.EEXIST, lambda top: os.symlink(DIGEST, top / NAME)),
    "malformed name": (errno.EINVAL, lambda top: os.symlink(DIGEST, top / "images/HOST/App:1")),
    "malformed target": (errno.EINVAL, lambda top: os.symlink("sha256:12", top / "images/word")),
    "mkdir in images": (errno.EPERM, lambda top: os.mkdir(top / "images/word")),
    "create in images": (errno.EPERM, lambda top: create(top / "images/word")),
    "rename to a malformed name": (errno.EPERM, move(NAME, "images/HOST/App:1")),
    "rename out of images": (errno.EPERM, move(NAME, "content/x")),
    "rename of a directory of names": (errno.EPERM, move("images/HOST", "images/other.example")),
    "rmdir of a directory that holds names": (errno.ENOTEMPTY, lambda top: os.rmdir(top / "images/HOST")),
    "rmdir of a digest": (errno.EPERM, lambda top: os.rmdir(top / "images" / DIGEST)),
    "unlink of an unknown name": (errno.ENOENT, lambda top: os.unlink(top / "images/word")),
    "chmod of an image": (errno.EPERM, lambda top: os.chmod(top / "images" / DIGEST, 0o700)),
    "tag without a digest": (errno.EINVAL, lambda top: os.setxattr(top / "images", "user.imgfs.tag", b"word")),
    "create in an image": (errno.EPERM, lambda top: create(top / "images" / DIGEST / "x")),
    "index.json of a manifest": (errno.ENOENT, lambda top: os.lstat(top / "images" / DIGEST / "index.json")),
    # content/
    "lookup of a malformed digest": (errno.ENOENT, lambda top: os.lstat(top / "content/sha256:12")),
    "lookup of an unmentioned digest": (errno.ENOENT, lambda top: os.lstat(top / "content" / UNKNOWN)),
    "write to a blob": (errno.EPERM, lambda top: os.open(top / "content" / BLOB, os.O_WRONLY)),
    "truncate of a blob": (errno.EPERM, lambda top: os.truncate(top / "content" / BLOB, 0)),
    "chmod of a blob": (errno.EPERM, lambda top: os.chmod(top / "content" / BLOB, 0o600)),
    "utimes of a blob": (errno.EPERM, lambda top: os.utime(top / "content" / BLOB, (1, 1))),
    "create in content": (errno.EPERM, lambda top: create(top / "content" / UNKNOWN)),
    "mkdir in content": (errno.EPERM, lambda top: os.mkdir(top / "content/x")),
    "symlink in content": (errno.EPERM, lambda top: os.symlink("x", top / "content/x")),
    "rename of a blob": (errno.EPERM, move(f"content/{BLOB}", f"content/{UNKNOWN}")),
    "unlink of an unknown blob": (errno.ENOENT, lambda top: os.unlink(top / "content" / UNKNOWN)),
    "label of a blob that is not stored": (
        errno.ENOENT,
        lambda top: os.setxattr(top / "content", "user.imgfs.label", f"{UNKNOWN} k=v".encode()),
    ),
    "label without a key": (
        errno.EINVAL,
        lambda top: os.setxattr(top / "content", "user.imgfs.label", BLOB.encode()),
    ),
    "label that is too large": (
        errno.EINVAL,
        lambda top: os.setxattr(top / "content" / BLOB, "user.label.k", b"x" * 4096),
    ),
    # content/ingest/
    "read of an ingest": (errno.EPERM, lambda top: (top / "content/ingest/ref").read_bytes()),
    "write at another offset": (errno.ERANGE, lambda top: write_at(top / "content/ingest/ref", 3)),
    "truncate to another size": (errno.EINVAL, lambda top: os.truncate(top / "content/ingest/ref", 3)),
    "rename to a malformed digest": (errno.EPERM, move("content/ingest/ref", "content/sha256:12")),
    "rename to another digest": (errno.EBADMSG, move("content/ingest/ref", f"content/{UNKNOWN}")),
    "rename out of content": (errno.EPERM, move("content/ingest/ref", "images/word")),
    "unlink of an unknown ref": (errno.ENOENT, lambda top: os.unlink(top / "content/ingest/none")),
    "mkdir in ingest": (errno.EPERM, lambda top: os.mkdir(top / "content/ingest/x")),
    "ref of a stored digest": (errno.EEXIST, lambda top: create(top / f"content/ingest/config-{BLOB}")),
    "total that is no number": (
        errno.EINVAL,
        lambda top: os.setxattr(top / "content/ingest/ref", "user.imgfs.total", b"many"),
    ),
    "total below what is there": (
        errno.EFBIG,
        lambda top: os.setxattr(top / "content/ingest/ref", "user.imgfs.total", b"1"),
    ),
    "expected digest that is malformed": (
        errno.EINVAL,
        lambda top: os.setxattr(top / "content/ingest/ref", "user.imgfs.expected", b"sha256:12"),
    ),
    "system attribute of an ingest": (
        errno.EOPNOTSUPP,
        lambda top: os.setxattr(top / "content/ingest/ref", "system.posix_acl_access", ACL),
    ),
    "other attribute of an ingest": (
        errno.EPERM,
        lambda top: os.setxattr(top / "content/ingest/ref", "user.other", b"x"),
    ),
    # snapshots/
    "lookup of an unknown snapshot": (errno.ENOENT, lambda top: os.lstat(top / "snapshots/none")),
    "lookup of a malformed platform": (errno.ENOENT, lambda top: os.lstat(top / f"snapshots/{DIGEST}@")),
    "view of an unknown snapshot": (errno.ENOENT, lambda top: os.symlink("none", top / "snapshots/v")),
    "view of an active snapshot": (errno.EINVAL, lambda top: os.symlink("active/key", top / "snapshots/v")),
    "view that is called by a digest": (errno.EINVAL, lambda top: os.symlink("base", top / "snapshots" / UNKNOWN)),
    "view over a snapshot": (errno.EEXIST, lambda top: os.symlink("base", top / "snapshots/base")),
    "unlink of a committed snapshot": (
        errno.EISDIR,
        lambda top: os.unlink(top / "snapshots/base"),
    ),
    "rename of a committed snapshot": (errno.EPERM, move("snapshots/base", "snapshots/other")),
    "rename of a view to a digest": (errno.EPERM, move("snapshots/view", f"snapshots/{UNKNOWN}")),
    "rename of a view to a colon-free digest": (
        errno.EPERM,
        move("snapshots/view", f"snapshots/{without_colons(UNKNOWN)}"),
    ),
    "rename of a view to a malformed name": (errno.EPERM, move("snapshots/view", "snapshots/a\nb")),
    "rmdir of a snapshot with children": (errno.EBUSY, lambda top: os.rmdir(top / "snapshots/base")),
    "mkdir in snapshots": (errno.EPERM, lambda top: os.mkdir(top / "snapshots/x")),
    "create in snapshots": (errno.EPERM, lambda top: create(top / "snapshots/x")),
    # snapshots/active/
    "key that exists": (errno.EEXIST, lambda top: os.mkdir(top / "snapshots/active/key")),
    "key with a control character": (errno.EINVAL, lambda top: os.mkdir(top / "snapshots/active/a\nb")),
    "second parent": (errno.EEXIST, lambda top: os.symlink("../../base", top / "snapshots/active/key/parent")),
    "unknown parent": (errno.ENOENT, lambda top: os.symlink("../../none", top / "snapshots/active/bare/parent")),
    "active parent": (errno.EINVAL, lambda top: os.symlink("../key", top / "snapshots/active/bare/parent")),
    "active parent by rename": (errno.EPERM, move("snapshots/active/bare/Cu", "snapshots/active/bare/parent")),
    "another link in a key": (errno.EINVAL, lambda top: os.symlink("x", top / "snapshots/active/bare/other")),
    "file in a key": (errno.EPERM, lambda top: create(top / "snapshots/active/bare/file")),
    "parent that is not there": (errno.ENOENT, lambda top: os.unlink(top / "snapshots/active/bare/parent")),
    "commit to a malformed name": (errno.EPERM, move("snapshots/active/bare", "snapshots/a\nb")),
    "commit to a taken name": (errno.EEXIST, move("snapshots/active/bare", "snapshots/base")),
    "commit elsewhere": (errno.EPERM, move("snapshots/active/bare", "images/word")),
    "rmdir of an unknown key": (errno.ENOENT, lambda top: os.rmdir(top / "snapshots/active/none")),
    # containers/ and .imgfs/
    "rmdir of an unknown container": (errno.ENOENT, lambda top: os.rmdir(top / "containers/none")),
    "mkdir in containers": (errno.EPERM, lambda top: os.mkdir(top / "containers/x")),
    "write to a document": (errno.EPERM, lambda top: os.open(top / ".imgfs/version", os.O_WRONLY)),
    "collecting with an unknown word": (
        errno.EPERM,
        lambda top: os.setxattr(top / ".imgfs", "user.imgfs.gc", b"everything"),
    ),
    "lease with a malformed link": (errno.EINVAL, lambda top: os.symlink("/etc", top / ".imgfs/leases/one/etc")),
    "lease with a malformed expiry": (
        errno.EINVAL,
        lambda top: os.setxattr(top / ".imgfs/leases/one", "user.imgfs.expires", b"soon"),
    ),
    "lease that exists": (errno.EEXIST, lambda top: os.mkdir(top / ".imgfs/leases/one")),
}


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The mountpoint, with one of everything. `images/host` stands for the registry."""
    with serving(tmp_path_factory.mktemp("semantics")) as scene:
        _fill(scene)
        yield scene.mount.path


def _fill(scene: Scene) -> None:
    os.readlink(scene.serve(IMAGE, "app"))
    scene.blob(BLOB).read_bytes()
    put(scene.mount.content / "ingest/ref", b"12345")
    snapshots, leases = scene.mount.snapshots, scene.mount.path / ".imgfs/leases"
    for key in ("first", "key", "bare"):
        (snapshots / "active" / key).mkdir()
    os.rename(snapshots / "active/first", snapshots / "base")
    (snapshots / "active/key/parent").symlink_to("../../base")
    (snapshots / "active/bare/Cu").symlink_to("../key")
    (snapshots / "view").symlink_to("base")
    (leases / "one").mkdir()


class _Named(os.PathLike[str]):
    """A path that writes the registry's host where a row says HOST."""

    def __init__(self, path: Path, host: str) -> None:
        self._path, self._host = path, host

    def __fspath__(self) -> str:
        return str(self._path).replace("HOST", self._host)

    def __truediv__(self, name: str) -> _Named:
        return _Named(self._path / name, self._host)

    def read_bytes(self) -> bytes:
        return Path(self).read_bytes()


@pytest.mark.parametrize("name", ROWS)
def test_a_refused_call_has_its_errno(top: Path, name: str) -> None:
    code, call = ROWS[name]
    host = next(one.name for one in (top / "images").iterdir() if not one.name.startswith("sha256"))
    with refused(code):
        call(_Named(top, host))  # pyright: ignore[reportArgumentType]


def test_modes_are_those_of_the_page(top: Path) -> None:
    modes = {
        f"content/{BLOB}": 0o444,
        "content/ingest/ref": 0o200,
        "snapshots/base": 0o555,
        "snapshots/active/key": 0o755,
        ".imgfs/repair": 0o600,
        ".imgfs/version": 0o444,
        "": 0o700,
    }
    assert {name: stat.S_IMODE((top / name).stat().st_mode) for name in modes} == modes


def test_attributes_are_those_of_the_page(top: Path) -> None:
    assert sorted({*os.listxattr(top / "content" / BLOB)} - {"user.imgfs.error"}) == [
        f"user.imgfs.{name}" for name in ("media_type", "resident", "size", "source", "verified")
    ]
    assert sorted({*os.listxattr(top / "content/ingest/ref")} - {"user.imgfs.error"}) == [
        "user.imgfs.digest",
        "user.imgfs.started",
    ]
    assert sorted({*os.listxattr(top / "snapshots/base")} - {"user.imgfs.error"}) == [
        f"user.imgfs.{name}" for name in ("children", "created", "kind", "usage")
    ]
    assert os.getxattr(top / "content/ingest/ref", "user.imgfs.digest").decode() == Digest.of(b"12345")
