"""Labels by the xattr of a directory: accepted and refused values, and equality with the label's own xattr."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from imgfs.oci.digest import Digest
from tests.mount.ingesting import blob_of, put
from tests.mount.preparing import Workshop, workshop
from tests.mount.scene import error_of, refused

DOOR = "user.imgfs.label"
DATA = b"labelled\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("labels")) as made:
        blob_of(made.mount.content / "ingest/one", DATA)
        yield made


def labels(path: Path) -> dict[str, bytes]:
    prefix = "user.label."
    return {name.removeprefix(prefix): os.getxattr(path, name) for name in os.listxattr(path) if prefix in name}


def test_a_blob_is_labelled_by_its_directory(shop: Workshop) -> None:
    content, digest = shop.mount.content, Digest.of(DATA)
    os.setxattr(content, DOOR, f"{digest} a=1".encode())
    os.setxattr(content, DOOR, f"{digest} a=2 and = more\n".encode())
    os.setxattr(content, DOOR, f"{digest} {quote('k = %')}=\0".encode())
    os.setxattr(content, DOOR, f"{digest} empty=".encode())
    assert labels(content / digest) == {"a": b"2 and = more\n", "k = %": b"\0", "empty": b""}
    os.setxattr(content, DOOR, f"{digest} a".encode())
    with refused(errno.ENODATA):
        os.setxattr(content, DOOR, f"{digest} a".encode())
    assert set(labels(content / digest)) == {"k = %", "empty"}


def test_snapshots_of_all_kinds_are_labelled_by_their_directory(shop: Workshop) -> None:
    shop.prepare("my key", shop.base)
    shop.make("done", shop.base, file="1")
    for id in (shop.base, "done", "active/my key"):
        os.setxattr(shop.mount.snapshots, DOOR, f"{quote(id)} a=1".encode())
        assert labels(shop.at(id)) == {"a": b"1"}
        os.setxattr(shop.mount.snapshots, DOOR, f"{quote(id)} a".encode())
        assert labels(shop.at(id)) == {}


@pytest.mark.parametrize(
    "value",
    ["", "x", " a=1", f"{Digest.of(DATA)}", f"{Digest.of(DATA)} ", f"{Digest.of(DATA)} =1", f"{Digest.of(DATA)} a b"],
)
def test_what_says_no_change_is_einval(shop: Workshop, value: str) -> None:
    for directory in (shop.mount.content, shop.mount.snapshots):
        with refused(errno.EINVAL):
            os.setxattr(directory, DOOR, value.encode())


def test_what_is_not_here_is_enoent_and_bad_labels_are_einval(shop: Workshop) -> None:
    content = shop.mount.content
    for directory, id in ((content, Digest.of(b"absent")), (content, "word"), (shop.mount.snapshots, "absent")):
        with refused(errno.ENOENT):
            os.setxattr(directory, DOOR, f"{id} a=1".encode())
    with refused(errno.EINVAL):
        os.setxattr(content, DOOR, f"{Digest.of(DATA)} a={'x' * 5000}".encode())
    assert "4096 bytes" in error_of(content / Digest.of(DATA))


def test_it_is_a_door_for_labels_and_nothing_else(shop: Workshop) -> None:
    put(shop.mount.content / "ingest/other", b"1")
    (shop.at("seen")).symlink_to(shop.base)
    for directory, id in ((shop.mount.content, "ingest"), (shop.mount.snapshots, "seen")):
        with refused(errno.EPERM):
            os.setxattr(directory, DOOR, f"{id} a=1".encode())
    for directory in (shop.mount.content, shop.mount.snapshots):
        with refused(errno.EPERM):
            os.setxattr(directory, "user.imgfs.labels", b"x")
        assert DOOR not in os.listxattr(directory)
