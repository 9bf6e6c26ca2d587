"""The root directory: images/, content/, snapshots/, containers/ and .imgfs/."""

from __future__ import annotations

import pyfuse3

from imgfs.fs.containers.directory import ContainersDirectory
from imgfs.fs.content.directory import ContentDirectory
from imgfs.fs.control.directory import ControlDirectory
from imgfs.fs.images.names import NamesDirectory
from imgfs.fs.node import FixedDirectory
from imgfs.fs.snapshots.directory import SnapshotsDirectory
from imgfs.fs.subsystems import Subsystems


class Root(FixedDirectory):
    """Its mode decides who may enter: root only, or the users that the option `access` names."""

    __slots__ = ("_group", "_mode")

    def __init__(self, subsystems: Subsystems) -> None:
        children = {
            b"images": NamesDirectory(subsystems.images, ""),
            b"content": ContentDirectory(subsystems.blob_files, subsystems.ingests),
            b"snapshots": SnapshotsDirectory(subsystems.chains, subsystems.users, subsystems.images.resolver),
            b"containers": ContainersDirectory(subsystems.containers),
            b".imgfs": ControlDirectory(subsystems.control),
        }
        super().__init__("", subsystems.shown, children)
        self.number = int(pyfuse3.ROOT_INODE)
        self._mode = subsystems.config.root_mode
        self._group = subsystems.config.root_group

    async def attributes(self) -> pyfuse3.EntryAttributes:
        entry = await super().attributes()
        entry.st_mode = pyfuse3.ModeT(entry.st_mode & ~0o777 | self._mode)
        entry.st_nlink = 2 + len(self._children)
        if self._group is not None:
            entry.st_gid = self._group
        return entry
