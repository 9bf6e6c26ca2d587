""".imgfs/: facts about the daemon as files."""

from __future__ import annotations

import os
from pathlib import Path

from imgfs import __version__
from imgfs.execution.forkserver import SOCKET
from imgfs.fs.caller import Caller
from imgfs.fs.containers.deleted import DeletedDirectory
from imgfs.fs.control.gc import GcDirectory
from imgfs.fs.control.leases import LeasesDirectory
from imgfs.fs.control.plugins import plugins_directory
from imgfs.fs.control.repair import RepairFile
from imgfs.fs.control.transfers import TransfersDirectory
from imgfs.fs.files import RenderedFile, ReportFile, called, constant
from imgfs.fs.node import FixedDirectory, Link, Node
from imgfs.fs.snapshots.layer import LayerDevices
from imgfs.fs.subsystems import ControlSubsystems
from imgfs.log import ASIDE, unwritten_lines
from imgfs.oci.digest import Digest

_LOG_SHOWN = 1 << 20


class ControlDirectory(FixedDirectory):
    """version, config, state.json, metrics, log, repair, and directories; unlisted: layers/ and forkserver."""

    __slots__ = ("_gc", "_rootfs", "_unlisted")

    def __init__(self, subsystems: ControlSubsystems) -> None:
        self._gc = GcDirectory(subsystems.shown, subsystems.collector)
        self._unlisted: dict[bytes, Node] = {
            b"layers": LayerDevices(subsystems.chains),
            b"forkserver": Link(".imgfs/forkserver", subsystems.shown, os.fspath(subsystems.state / SOCKET)),
        }
        self._rootfs = subsystems.chains.rootfs
        deleted = DeletedDirectory(subsystems.shown, subsystems.containers.deleted)
        children: dict[bytes, Node] = {
            **_documents(subsystems),
            b"deleted": FixedDirectory(".imgfs/deleted", subsystems.shown, {b"containers": deleted}),
            b"gc": self._gc,
            b"leases": LeasesDirectory(subsystems.shown, subsystems.leases),
            b"plugins": plugins_directory(subsystems.shown, subsystems.plugins),
            b"transfers": TransfersDirectory(subsystems.shown, subsystems.transfers, subsystems.running),
            b"repair": RepairFile(subsystems.shown, subsystems.mender),
        }
        super().__init__(".imgfs", subsystems.shown, children)

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        return self._unlisted[name] if name in self._unlisted else await super().lookup(name, caller)

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """`user.imgfs.views`, value `unmount`: unmount the kernel views, which keep the tree busy for umount(2).

        `user.imgfs.gc`: `collect` or `all` collects garbage; `discard DIGEST...` removes those of these blobs that
        nothing refers to, even if they cannot be fetched again. gc/last has the report.
        """
        word, *digests = value.split(b" ") if name == b"user.imgfs.gc" else (b"",)
        if (name, value) == (b"user.imgfs.views", b"unmount"):
            await caller.wait(self._rootfs.clear)
        elif name == b"user.imgfs.gc" and value in (b"collect", b"all"):
            await caller.wait(lambda: self._gc.run(everything=value == b"all"))
        elif word == b"discard" and digests:
            unwanted = [Digest.parse(os.fsdecode(one)) for one in digests]
            await caller.wait(lambda: self._gc.discard(unwanted))
        else:
            raise self.refusal()


def _documents(subsystems: ControlSubsystems) -> dict[bytes, Node]:
    renderers = {
        "version": constant(f"{__version__}\n".encode()),
        "config": constant(subsystems.settings.encode()),
        "state.json": called(subsystems.describe),
        "log": called(lambda: _tail(subsystems.state / "log")),
    }
    return {
        **{
            name.encode(): RenderedFile(f".imgfs/{name}", subsystems.shown, render)
            for name, render in renderers.items()
        },
        # Its size costs a walk over the stores, which a listing of this directory does not need.
        b"metrics": ReportFile(".imgfs/metrics", subsystems.shown, subsystems.metrics),
    }


def _tail(path: Path) -> bytes:
    """Return the end of the log, from the start of a line, and the events that could not be written to its file.

    The previous log file is read too, because a new log is nearly empty.
    """
    data = _end_of(path.parent / ASIDE, _LOG_SHOWN) + _end_of(path, _LOG_SHOWN)
    if len(data) > _LOG_SHOWN:
        data = data[-_LOG_SHOWN:].partition(b"\n")[2]
    return data + unwritten_lines()


def _end_of(path: Path, most: int) -> bytes:
    """Return the last bytes of a file, and one more than `most` if there are more."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - most - 1))
            return file.read(most + 1)
    except FileNotFoundError:
        return b""
