"""Sample images: a small one that runs, and one that contains every oddity that a layer may contain.

The expected result comes from other unpackers. Each of them refuses something, so `Oddities` selects what to include.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgfs.errors import NotFound
from imgfs.oci.platform import Platform
from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import (
    DeviceFile,
    Dir,
    Entry,
    Fifo,
    File,
    Hardlink,
    Opaque,
    SparseFile,
    Symlink,
    Whiteout,
)
from imgfs.testing.layertar import Compression

BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
APPLETS = (
    "sh",
    "cat",
    "echo",
    "env",
    "id",
    "ls",
    "mkdir",
    "mount",
    "ps",
    "pwd",
    "rm",
    "sleep",
    "stat",
    "touch",
    "true",
    "wc",
)

_CAP_NET_RAW = 1 << 13
_VFS_CAP_REVISION_2 = 0x02000000
_EFFECTIVE = 1

NOT_UTF8 = b"caf\xe9-\xff\xfe"
MEBIBYTE = 1 << 20

IMPLICIT_DIRECTORIES = frozenset({b"implicit", b"implicit/parent"})
"""Directories of `oddities_image` without an entry. Each unpacker gives them its own mtime."""


def capability(permitted: int) -> bytes:
    """Return a value of security.capability: revision 2, permitted and effective (capabilities(7))."""
    return struct.pack("<IIIII", _VFS_CAP_REVISION_2 | _EFFECTIVE, permitted & 0xFFFFFFFF, 0, permitted >> 32, 0)


def busybox_image(
    compression: Compression = "gzip",
    *,
    platform: Platform = AMD64,
    docker: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Image:
    """Build a runnable image of four layers: busybox, its links, /etc, and an upper layer with a whiteout.

    Raises NotFound if this machine has no static busybox.
    """
    layers = (_busybox_base(), _busybox_links(), _busybox_etc(), _busybox_upper())
    return image([layer(one, compression) for one in layers], platform=platform, docker=docker, config=config)


def _busybox() -> bytes:
    for path in BUSYBOX:
        if path.exists():
            return path.read_bytes()
    raise NotFound(f"busybox: neither of {', '.join(map(str, BUSYBOX))} is there; install busybox-static")


def _busybox_base() -> list[Entry]:
    return [
        Dir("bin"),
        File("bin/busybox", _busybox(), mode=0o755),
        *(Dir(name) for name in ("dev", "etc", "proc", "root", "sys", "usr", "usr/share", "var")),
        Dir("tmp", mode=0o1777),
        File("etc/motd", b"a message that the upper layer removes\n"),
    ]


def _busybox_links() -> list[Entry]:
    return [Dir("bin"), *(Symlink(f"bin/{name}", "busybox") for name in APPLETS)]


def _busybox_etc() -> list[Entry]:
    return [
        Dir("etc"),
        File("etc/os-release", b'ID=imgfs-test\nNAME="imgfs test image"\nVERSION_ID=1\n'),
        File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        File("etc/group", b"root:x:0:\nnogroup:x:65534:\n"),
        File("usr/share/greeting", b"lower\n"),
    ]


def _busybox_upper() -> list[Entry]:
    return [Dir("etc"), Whiteout("etc/motd"), Dir("usr/share"), File("usr/share/greeting", b"upper\n")]


@dataclass(frozen=True, slots=True)
class Oddities:
    """What `oddities_image` contains besides what every unpacker handles equally.

    `zstd`: a layer compressed with zstd. `gnu_sparse`: sparse files with GNU's own header. `lower_hardlinks`: hard
    links to files of a lower layer. `lower_symlinks`: entries whose parent is a symbolic link of a lower layer.
    `late_whiteouts`: whiteouts after the entry of the same name in the same layer (they hide lower layers only).
    """

    zstd: bool = True
    gnu_sparse: bool = True
    lower_hardlinks: bool = True
    lower_symlinks: bool = True
    late_whiteouts: bool = True


ALL_ODDITIES = Oddities()


def oddities_image(oddities: Oddities = ALL_ODDITIES, *, platform: Platform = AMD64, docker: bool = False) -> Image:
    """Build an image of eight layers in every tar format and compression, with the selected `oddities`."""
    layers = [
        layer(_odd_base()),
        layer(_odd_names(), "none"),
        layer(_odd_nodes(), "zstd" if oddities.zstd else "gzip"),
        layer([], "gzip"),
        layer(_odd_gnu(oddities), "gzip", format="gnu"),
        layer(_odd_ustar(), "none", format="ustar"),
        layer(_odd_upper()),
        layer(_odd_last(oddities)),
    ]
    return image(layers, platform=platform, docker=docker)


def _odd_base() -> list[Entry]:
    """The entries that upper layers hide, replace and link to."""
    return [
        Dir("", mtime_ns=1_600_000_000_123_456_789),
        Dir("whiteout"),
        File("whiteout/file", b"gone\n"),
        File("whiteout/kept", b"kept\n"),
        Dir("whiteout/directory"),
        Dir("whiteout/directory/deep"),
        File("whiteout/directory/deep/file", b"gone too\n"),
        File("whiteout/late", b"lower\n"),
        Dir("opaque", mode=0o750),
        File("opaque/old", b"hidden\n"),
        Dir("opaque/old-directory"),
        File("opaque/old-directory/file", b"hidden\n"),
        File("opaque/both", b"lower\n"),
        Dir("replaced"),
        Dir("replaced/directory"),
        File("replaced/directory/file", b"below a directory that becomes a file\n"),
        File("replaced/file", b"a file that becomes a directory\n"),
        File("replaced/link-target", b"reached by a link that becomes a file\n"),
        Symlink("replaced/link", "link-target"),
        Dir("linked"),
        File("linked/first", b"three names\n" * 100),
        Hardlink("linked/second", "linked/first"),
        Hardlink("linked/third", "./linked/first"),
        File("linked/lower", b"linked from above\n"),
        File("linked/lower-copy", b"replaced above, then linked\n"),
        Dir("real"),
        Symlink("alias", "real"),
        File("alias/within", b"through a link of the same layer\n"),
        Symlink("absolute", "/real"),
        File("absolute/absolute", b"through an absolute link: inside the root\n"),
        File("implicit/parent/file", b"no entry names its directories\n"),
        File("duplicate", b"first\n", mode=0o600),
        File("duplicate", b"the last one wins\n", mode=0o640),
    ]


def _odd_names() -> list[Entry]:
    deep = "/".join(["long" * 10] * 8)
    parents: list[Entry] = [Dir("/".join(["long" * 10] * depth)) for depth in range(1, 9)]
    return [
        Dir("names"),
        File("names/" + "n" * 255, b"255 bytes\n"),
        File("names/grüße-日本語-🐋", b"not ASCII\n"),
        File(b"names/" + NOT_UTF8, b"not UTF-8\n"),
        Symlink(b"names/link-" + NOT_UTF8, NOT_UTF8),
        File("names/two\nlines", b"newline\n"),
        File("names/ spaces and\ttab ", b"blank\n"),
        File("names/back\\slash", b"backslash\n"),
        File("names/-dash", b"dash\n"),
        *parents,
        File(f"{deep}/file", b"a path of more than 256 bytes\n"),
        Symlink(f"{deep}/link", "../" * 8 + "names/" + "n" * 255),
        Hardlink("names/hardlink-to-long", f"{deep}/file"),
        Symlink("dangling", "/nowhere/at all"),
    ]


def _odd_nodes() -> list[Entry]:
    return [
        Dir("nodes"),
        Fifo("nodes/fifo", mode=0o620),
        DeviceFile("nodes/null", "character", 1, 3, mode=0o666),
        DeviceFile("nodes/block", "block", 7, 300, mode=0o660, gid=6),
        Dir("modes"),
        File("modes/setuid", b"#!/bin/sh\n", mode=0o4755),
        File("modes/setgid", b"#!/bin/sh\n", mode=0o2755, gid=50),
        File("modes/none", b"secret\n", mode=0o000),
        Dir("modes/sticky", mode=0o1777),
        Dir("modes/setgid-directory", mode=0o2775, gid=50),
        File("modes/setgid-directory/file", b"keeps its own group\n", gid=0),
        Dir("owners"),
        File("owners/big", b"uid over 2^31\n", uid=3_000_000_000, gid=4_000_000_000),
        Symlink("owners/link", "big", uid=1234, gid=5678),
        Dir("owners/directory", uid=1000, gid=1000, mode=0o700),
        Dir("times"),
        File("times/nanoseconds", mtime_ns=1_234_567_890_987_654_321),
        File("times/epoch", mtime_ns=0),
        Symlink("times/link", "epoch", mtime_ns=1_111_111_111_000_000_007),
        Dir("times/directory", mtime_ns=1_000_000_000_000_000_001),
        Dir("xattrs", xattrs={"user.on-directory": b"yes"}),
        File("xattrs/user", b"x", xattrs={"user.text": b"value", "user.bytes": b"\x00\xff\x80", "user.empty": b""}),
        File("xattrs/capable", b"x", mode=0o755, xattrs={"security.capability": capability(_CAP_NET_RAW)}),
        Dir("sparse"),
        SparseFile("sparse/only-hole", MEBIBYTE),
        SparseFile("sparse/pax-1.0", 3 * MEBIBYTE, ((0, b"head" * 128), (MEBIBYTE, b"middle" * 1000))),
        SparseFile("sparse/pax-0.1", MEBIBYTE, ((8192, b"inside" * 700),), "pax-0.1"),
        File("empty"),
    ]


def _odd_gnu(oddities: Oddities) -> list[Entry]:
    entries: list[Entry] = [
        Dir("gnu"),
        File("gnu/" + "g" * 180, b"a GNU long name\n"),
        Symlink("gnu/link", "../" + "t" * 150),
        File("gnu/big-owner", b"base-256 numbers\n", uid=3_000_000_001, gid=2),
    ]
    return entries + (_odd_gnu_sparse() if oddities.gnu_sparse else [])


def _odd_gnu_sparse() -> list[Entry]:
    many = tuple((at * 8192, b"%04d" % at * 128) for at in range(30))
    return [
        SparseFile("gnu/sparse", MEBIBYTE, ((4096, b"gnu!" * 128), (65536, b"sparse" * 500)), "gnu"),
        SparseFile("gnu/many-extents", MEBIBYTE, many, "gnu"),
        SparseFile("gnu/only-hole", MEBIBYTE, (), "gnu"),
    ]


def _odd_ustar() -> list[Entry]:
    prefix = "ustar/" + "p" * 100
    return [Dir("ustar"), Dir(prefix), File(f"{prefix}/" + "u" * 90, b"a prefix and a name\n")]


def _odd_upper() -> list[Entry]:
    return [
        Dir("whiteout"),
        Whiteout("whiteout/file"),
        Whiteout("whiteout/directory"),
        Dir("opaque", mode=0o755),
        File("opaque/new", b"beside the marker, before it\n"),
        Opaque("opaque"),
        File("opaque/both", b"upper\n"),
        Dir("opaque/old-directory"),
        Dir("replaced"),
        File("replaced/directory", b"was a directory\n"),
        Dir("replaced/file"),
        File("replaced/file/inside", b"was a file\n"),
        File("replaced/link", b"was a link\n"),
        Dir("linked"),
        File("linked/lower-copy", b"replaced\n"),
        Hardlink("linked/to-replaced", "linked/lower-copy"),
        File("linked/again", b"old content keeps its other name\n"),
        Hardlink("linked/keeps-old", "linked/again"),
        File("linked/again", b"new content\n"),
    ]


def _odd_last(oddities: Oddities) -> list[Entry]:
    entries: list[Entry] = [
        Dir("whiteout"),
        File("whiteout/kept", b"the last layer's\n"),
    ]
    if oddities.lower_hardlinks:
        entries += [
            Dir("linked"),
            Hardlink("linked/from-above", "linked/lower"),
            Hardlink("fourth", "linked/first"),
        ]
    if oddities.lower_symlinks:
        entries += [File("alias/across", b"through a link of a lower layer\n")]
    if oddities.late_whiteouts:
        entries += [File("whiteout/late", b"upper\n"), Whiteout("whiteout/late")]
    return entries
