"""Mount FUSE, and amend the FUSE_INIT handshake between the kernel and libfuse (linux/fuse.h).

imgfs mounts the tree without libfuse. libfuse up to 3.16 does not pass on the flag for parallel lookups in one
directory, and pyfuse3 cannot set it. Without the flag, a lookup that waits for a dead registry would block all other
lookups in its directory, uninterruptibly, in the kernel. So the session does the INIT handshake through a socket first
(fs/session.py), `amend_init` sets the missing flags, and then the device replaces the socket.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import Busy, ImgfsError, NotFound, NotPermitted, Unsupported
from imgfs.kernel.libc import LIBC
from imgfs.kernel.mounts import FILESYSTEM

DEVICE = "/dev/fuse"
SOURCE = "imgfs"
INIT_BUFFER = 64 << 10
"""Buffer size in bytes for the INIT message of either side. The kernel refuses reads into less than 8 KiB."""

_PARALLEL_DIROPS, _POSIX_ACL, _CACHE_SYMLINKS = 1 << 18, 1 << 20, 1 << 23
_WANTED = _PARALLEL_DIROPS | _POSIX_ACL | _CACHE_SYMLINKS
_HEADER_IN, _HEADER_OUT = 40, 16
_FLAGS = 12
"""Offset of `flags` in fuse_init_in and fuse_init_out, after major, minor and max_readahead."""
_MAX_BACKGROUND = 16
"""Offset of `max_background` and `congestion_threshold` in fuse_init_out."""
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_log = logging.getLogger("imgfs.kernel")


@dataclass(frozen=True, slots=True)
class FuseMount:
    """Mount options of a tree.

    `others`: users other than the mounting user may access the tree; the kernel checks file modes. `trusted`: setuid
    bits and device nodes work. `read_only`: the kernel refuses every change. `source`: the source field in the mount
    table.
    """

    others: bool
    trusted: bool
    read_only: bool = False
    source: str = SOURCE

    @property
    def options(self) -> list[str]:
        """Options for the FUSE driver."""
        return ["default_permissions", *(["allow_other"] if self.others else [])]

    @property
    def flags(self) -> int:
        """Flags for mount(2)."""
        return (0 if self.trusted else _MS_NOSUID | _MS_NODEV) | (_MS_RDONLY if self.read_only else 0)


def open_fuse(mountpoint: str, mount: FuseMount) -> int:
    """Mount at `mountpoint` and return the device. Closing the last descriptor of the device ends the connection.

    Without CAP_SYS_ADMIN, fusermount3 mounts the tree, always with nosuid and nodev. Raises NotFound, NotPermitted,
    Busy or Unsupported; the message has advice.
    """
    if not os.path.exists(DEVICE):
        raise NotFound(f"{DEVICE}: is missing; load the fuse module, or give the container the device")
    if os.geteuid() == 0:
        device = _mount_as_root(mountpoint, mount)
        if device is not None:
            return device
    return _mount_as_user(mountpoint, mount)


def amend_init(request: bytes, answer: bytes, *, max_background: int) -> bytes:
    """Add flags that pyfuse3 cannot set, and `max_background`, to the answer that libfuse gives to FUSE_INIT.

    The flags are: parallel lookups in one directory, POSIX ACLs, and cached symbolic links. With POSIX ACLs the kernel
    reads `system.posix_acl_access` of an inode and decides by it, as it does in EROFS; without, it decides by the mode
    alone. The kernel caches the target of a symbolic link for as long as its inode lives, so a link with another
    target needs another inode number. The kernel's default for `max_background` is 12: then 12 pages that wait for a
    dead registry stop all other cold reads. Flags that the kernel does not offer are not set. A refusal is returned
    unchanged.
    """
    offered = struct.unpack_from("=I", request, _HEADER_IN + _FLAGS)[0]
    amended = bytearray(answer)
    if len(amended) >= _HEADER_OUT + _MAX_BACKGROUND + 4:
        flags = struct.unpack_from("=I", amended, _HEADER_OUT + _FLAGS)[0]
        struct.pack_into("=I", amended, _HEADER_OUT + _FLAGS, flags | offered & _WANTED)
        struct.pack_into("=HH", amended, _HEADER_OUT + _MAX_BACKGROUND, max_background, max_background * 3 // 4)
    return bytes(amended)


def set_read_ahead(device: tuple[int, int], kilobytes: int) -> None:
    """Set the largest read-ahead of the kernel for sequential reads.

    With the default of 128 kB, round trips to user space dominate the cost of reading, and libfuse cannot raise it. If
    it cannot be set (for an ordinary user), a log line reports that.
    """
    try:
        Path(f"/sys/class/bdi/{device[0]}:{device[1]}/read_ahead_kb").write_text(str(kilobytes))
    except OSError as error:
        _log.info("kernel default kept", extra={"path": error.filename, "reason": error.strerror})


def _mount_as_root(mountpoint: str, mount: FuseMount) -> int | None:
    """Return the device, or None if root may not mount here (a container without CAP_SYS_ADMIN)."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NotPermitted(
            f"{DEVICE}: {error.strerror}; load the fuse module, or allow the container the device"
        ) from None
    owner = [f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
    data = ",".join([f"fd={device}", "rootmode=40000", *owner, *mount.options])
    source, target = os.fsencode(mount.source), os.fsencode(mountpoint)
    if LIBC.mount(source, target, FILESYSTEM.encode(), mount.flags, data.encode()) == 0:
        return device
    code = ctypes.get_errno()
    os.close(device)
    if code == errno.EPERM:
        return None
    raise _refused(code, mountpoint)


def _refused(code: int, mountpoint: str) -> ImgfsError:
    if code == errno.EBUSY:
        return Busy(f"{mountpoint}: is in use; choose another mountpoint")
    if code == errno.ENODEV:
        return Unsupported("this kernel has no FUSE; load the fuse module")
    return NotPermitted(f"{mountpoint}: cannot be mounted: {os.strerror(code)}")


def _mount_as_user(mountpoint: str, mount: FuseMount) -> int:
    """Mount through the setuid program fusermount3 and receive the device from it (fusermount3(1), _FUSE_COMMFD)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = mount.source.replace("\\", r"\\").replace(",", r"\,")
        options = [f"fsname={source}", "subtype=imgfs", *mount.options, *(["ro"] if mount.read_only else [])]
        command = ["fusermount3", "-o", ",".join(options), "--", mountpoint]
        environment = os.environ | {"_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                command, pass_fds=[theirs.fileno()], env=environment, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise NotPermitted(f"{mountpoint}: fusermount3 is missing; install fuse3, or mount as root") from None
        if done.returncode:
            raise NotPermitted(f"{mountpoint}: cannot be mounted: {done.stderr.strip() or 'fusermount3 refused'}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise NotPermitted(f"{mountpoint}: fusermount3 gave no device; check its version")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
