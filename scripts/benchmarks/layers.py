"""Uncompressed layers of the benchmark's images.

Generated layers depend only on their seed. Debian layers depend on the package mirror.
"""

from __future__ import annotations

import io
import random
import shutil
import tarfile
from pathlib import Path

from .processes import run

EPOCH = 1_700_000_000
FILES_IN_DIRECTORY = 100
_MIB = 1 << 20
_APPLETS = ("sh", "cat", "ls", "true")
_LETTERS = b"eeeetttaaaooiinnsshhrrdlucmfwypvbgk"


class LayerWriter:
    """A layer tar, written entry by entry. All entries are owned by root and have the same time."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def directory(self, name: str) -> None:
        self._add(name, tarfile.DIRTYPE, 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._add(name, tarfile.REGTYPE, mode, data)

    def link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def _add(self, name: str, kind: bytes, mode: int, data: bytes = b"", target: str = "") -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.mtime, entry.linkname, entry.size = kind, mode, EPOCH, target, len(data)
        self._tar.addfile(entry, io.BytesIO(data))


def busybox(path: Path) -> None:
    """A static shell and cat, and /etc/os-release."""
    with LayerWriter(path) as layer:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            layer.directory(name)
        layer.file("bin/busybox", _busybox_program().read_bytes(), 0o755)
        for applet in _APPLETS:
            layer.link(f"bin/{applet}", "busybox")
        layer.file("etc/os-release", b'ID=busybox\nPRETTY_NAME="one static program"\n')
        layer.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")


def _busybox_program() -> Path:
    return Path(shutil.which("busybox") or "/bin/busybox")


def small_files(path: Path, directories: int, seed: int) -> None:
    """`directories` of 100 text files each below /srv, 1.5 KB on average."""
    rng = random.Random(seed)
    text = _prose(rng, _MIB)
    with LayerWriter(path) as layer:
        layer.directory("srv")
        for number in range(directories):
            layer.directory(f"srv/d{number:04}")
            for index in range(FILES_IN_DIRECTORY):
                size = min(int(rng.expovariate(1 / 1500)), 16_000)
                at = rng.randrange(len(text) - size)
                head = b"%d/%d\n" % (number, index)
                layer.file(f"srv/d{number:04}/file{index:02}.txt", head + text[at : at + size])


def one_large_file(path: Path, size: int, seed: int) -> None:
    """/data/large of `size` bytes, one third of them incompressible."""
    with LayerWriter(path) as layer:
        layer.directory("data")
        layer.file("data/large", Blend(seed).take(size))


def noise(path: Path, size: int, seed: int) -> None:
    """/data/noise<seed> of `size` incompressible bytes."""
    with LayerWriter(path) as layer:
        layer.directory("data")
        layer.file(f"data/noise{seed}", random.Random(seed).randbytes(size))


def medium_files(path: Path, total: int, seed: int, directory: str = "data") -> None:
    """Files of 0.1 to 2 MB, `total` bytes in all, one third of them incompressible."""
    rng, blend, number = random.Random(seed), Blend(seed + 1), 0
    with LayerWriter(path) as layer:
        layer.directory(directory)
        while total > 0:
            size = min(total, rng.randint(100_000, 2_000_000))
            layer.file(f"{directory}/part{number:04}", blend.take(size))
            total, number = total - size, number + 1


class Blend:
    """An endless mix of noise (one third), prose and zeros, in pieces of 8 to 256 KiB."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._prose = [_prose(self._rng, _MIB) for _ in range(8)]

    def take(self, size: int) -> bytes:
        pieces, left = list[bytes](), size
        while left > 0:
            piece = self._piece(min(left, self._rng.randint(8 << 10, 256 << 10)))
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _piece(self, size: int) -> bytes:
        dice = self._rng.random()
        if dice < 0.34:
            return self._rng.randbytes(size)
        if dice < 0.9:
            at = self._rng.randrange(_MIB - size)
            return self._rng.choice(self._prose)[at : at + size]
        return bytes(size)


def _prose(rng: random.Random, size: int) -> bytes:
    vocabulary = [bytes(rng.choices(_LETTERS, k=rng.randint(2, 9))) for _ in range(4000)]
    return b" ".join(rng.choices(vocabulary, k=size // 3))[:size]


def debian(path: Path, packages: tuple[str, ...] = ()) -> None:
    """Debian minbase and more packages, by mmdebstrap, with fixed times and without caches, logs and manuals."""
    part = path.with_suffix(".part.tar")
    run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
        *([f"--include={','.join(packages)}"] if packages else []),
        *("--aptopt=Acquire::Languages none", "--dpkgopt=path-exclude=/usr/share/man/*"),
        *("--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*.bin $1/var/log/*", debian_suite(), part),
        env={"SOURCE_DATE_EPOCH": str(EPOCH)},
        timeout=1800,
    )
    part.rename(path)


def debian_suite() -> str:
    """Return the host's own Debian suite, whose archive key the host has; bookworm on other systems."""
    lines = Path("/etc/os-release").read_text().splitlines()
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    return facts.get("VERSION_CODENAME", "bookworm") if facts.get("ID") == "debian" else "bookworm"


def difference(lower: Path, whole: Path, path: Path) -> None:
    """Write those entries of the tar `whole` that the tar `lower` lacks or has in another form.

    A hard link to a file of the lower layer becomes a copy, because containerd and podman refuse such links.
    """
    with (
        tarfile.open(lower) as below,
        tarfile.open(whole) as tar,
        tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out,
    ):
        known = {_identity(entry) for entry in below}
        kept = set[str]()
        for entry in tar:
            if _identity(entry) in known:
                continue
            if entry.islnk() and entry.linkname not in kept:
                entry = _copy_of_target(tar, entry)
            kept.add(entry.name)
            out.addfile(entry, tar.extractfile(entry) if entry.isreg() else None)


def _copy_of_target(tar: tarfile.TarFile, link: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a hard link as a regular file, with the position of its target in the tar."""
    target = tar.getmember(link.linkname)
    copy = link.replace(deep=False)
    copy.type, copy.linkname, copy.size, copy.offset_data = tarfile.REGTYPE, "", target.size, target.offset_data
    return copy


def _identity(entry: tarfile.TarInfo) -> tuple[str, bytes, int, int, str, float]:
    return entry.name, entry.type, entry.size, entry.mode, entry.linkname, entry.mtime
