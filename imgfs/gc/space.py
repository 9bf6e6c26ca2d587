"""What `df` says of the tree: the state directory's disk, and under a quota what that leaves of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from imgfs.gc.limits import Limits


@dataclass(frozen=True, slots=True)
class Space:
    """In blocks of `block` bytes, as statvfs(3) counts: `free` there are, `available` of them may be used here.

    `files` and `files_free` are the disk's inodes, whatever limits there are.
    """

    block: int
    total: int
    free: int
    available: int
    files: int
    files_free: int


def space_of(disk: os.statvfs_result, limits: Limits, used: int) -> Space:
    """The disk under `limits`, of which `used` bytes are taken here.

    Without a quota it is the disk itself, as a directory on it would say. Under one it is as large as the quota (or the
    disk, if that is smaller), and used is what counts for the quota, as for a directory with a project quota. What is
    to be kept free on the disk is free and not available, like the blocks that are reserved for root.
    """
    total, free = disk.f_blocks, disk.f_bfree
    if limits.quota:
        total = min(total, limits.quota // disk.f_frsize)
        free = max(0, total - -(-used // disk.f_frsize))
    lowest = -(-limits.lowest(disk.f_blocks * disk.f_frsize) // disk.f_frsize)
    available = max(0, min(free, disk.f_bavail - lowest))
    return Space(disk.f_frsize, total, free, available, disk.f_files, disk.f_ffree)
