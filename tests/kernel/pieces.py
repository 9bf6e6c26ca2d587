"""Material for mounts under test: a small EROFS image written by hand, directories, a process without capabilities."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imgfs.kernel.erofs import detached_erofs
from imgfs.kernel.mounts import MountEntry, mount_at, mounts
from tests.support.programs import program

_BLOCK = 4096
_DEVICES = 1152
_ENTRY = struct.Struct("<QHBB")


def erofs_image(path: Path, devices: int, uuid: bytes = b"imgfs-test-image") -> list[Path]:
    """Write an image whose root has a file `<n>` of 4,096 bytes on each device, and return the device files.

    It is written by hand after erofs_fs.h, so that the tests check the mount calls and not the image writer of imgfs.
    """
    names = sorted([b".", b"..", *(b"%03d" % number for number in range(devices))])
    meta = -(-(_DEVICES + 128 * devices) // _BLOCK) * _BLOCK
    inodes = [_directory(2 * _BLOCK, (meta + 64 * (devices + 1)) // _BLOCK + 1)]
    inodes += [_file(number) for number in range(devices)]
    nids = {name: (meta + 64 * (0 if name.startswith(b".") else int(name) + 1)) // 32 for name in names}
    table = b"".join(struct.pack("<64sII56x", b"", 1, 100_000 + number) for number in range(devices))
    start = (bytes(1024) + _superblock(devices, meta // 32, uuid) + table).ljust(meta, b"\0")
    body = (start + b"".join(inodes)).ljust((meta + 64 * (devices + 1)) // _BLOCK * _BLOCK + _BLOCK, b"\0")
    half = len(names) // 2
    path.write_bytes(body + _entries(names[:half], nids) + _entries(names[half:], nids))
    return [_device(path, number) for number in range(devices)]


def mount_erofs(image: Path, devices: Sequence[Path], target: str, *, trusted: bool) -> None:
    """Mount an image over `target`."""
    with detached_erofs(image, devices, trusted=trusted) as mount:
        mount.attach(target)


def content_of(number: int) -> bytes:
    """Return the content of one device of an image by erofs_image."""
    return (b"device %03d\n" % number).ljust(_BLOCK, b".")


def directory(path: Path, **files: str) -> Path:
    """Make a directory with these files."""
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def mounts_of(place: Path) -> list[MountEntry]:
    """Return the mounts at or below `place`. Other mounts on this machine come and go."""
    return [mount for mount in mounts() if str(place) in (mount.mountpoint + mount.source)]


def options(path: Path) -> set[str]:
    """Return the options of the mount at `path`, not those of its filesystem."""
    mount = mount_at(str(path))
    assert mount is not None, f"{path}: nothing is mounted there"
    lines = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next(set(fields[5].split(",")) for fields in lines if int(fields[0]) == mount.number)


def powerless(code: str, *arguments: Path) -> str:
    """Run Python code as root without CAP_SYS_ADMIN, as in a container, and return its output."""
    become = [program("setpriv"), "--bounding-set=-sys_admin", "--inh-caps=-all"]
    command = [*become, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _device(image: Path, number: int) -> Path:
    path = image.with_name(f"{image.name}.{number}")
    path.write_bytes(content_of(number))
    return path


def _superblock(devices: int, root: int, uuid: bytes) -> bytes:
    block = bytearray(128)
    struct.pack_into("<I8xBxHQ", block, 0, 0xE0F5E1E2, 12, root, devices + 1)
    block[48:64] = uuid
    struct.pack_into("<I2xHH", block, 80, 4 | 8, devices, _DEVICES // 128)
    return bytes(block)


def _directory(size: int, block: int) -> bytes:
    return struct.pack("<HHHHIIIIHHI", 0, 0, 0o40755, 2, size, 0, block, 1, 0, 0, 0).ljust(64, b"\0")


def _file(number: int) -> bytes:
    inode = struct.pack("<HHHHIIIIHHI", 4 << 1, 0, 0o104755, 1, _BLOCK, 0, 0x20, number + 2, 0, 0, 0)
    return (inode + struct.pack("<HHI", 0, number + 1, 0)).ljust(64, b"\0")


def _entries(names: list[bytes], nids: dict[bytes, int]) -> bytes:
    offset, head = _ENTRY.size * len(names), b""
    for name in names:
        head += _ENTRY.pack(nids[name], offset, 2 if name.startswith(b".") else 1, 0)
        offset += len(name)
    return (head + b"".join(names)).ljust(_BLOCK, b"\0")
