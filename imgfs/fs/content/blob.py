"""A blob as a file. Its size is right before any byte is stored; open fetches and verifies the bytes."""

from __future__ import annotations

import stat

import pyfuse3

from imgfs.errors import NotPermitted, VerificationFailed
from imgfs.fs.caller import Caller
from imgfs.fs.files import WRITING, FileHandle
from imgfs.fs.node import SOON, Handle, NoAttribute, Node, control_number
from imgfs.fs.subsystems import BlobSubsystems
from imgfs.fs.xattrs import as_xattrs, label_key
from imgfs.oci.descriptor import Descriptor


class BlobFile(Node):
    """One blob, in content/ or as an image's manifest, index or config.

    The media type of its descriptor may be empty; the catalogue is asked when it matters.
    """

    __slots__ = ("_descriptor", "_subsystems")

    def __init__(self, subsystems: BlobSubsystems, descriptor: Descriptor) -> None:
        super().__init__(control_number(f"content/{descriptor.digest}"))
        self._subsystems = subsystems
        self._descriptor = descriptor

    async def attributes(self) -> pyfuse3.EntryAttributes:
        info = self._subsystems.content.info(self._descriptor.digest)
        mode = stat.S_IFREG | 0o444
        shown = self._subsystems.shown
        if info is None:
            return shown.entry(self.number, mode, size=self._descriptor.size, disk=0)
        return shown.entry(self.number, mode, size=info.size, time=info.committed, disk=info.allocated, keep=SOON)

    async def open(self, flags: int, caller: Caller) -> Handle:
        digest = self._descriptor.digest
        if flags & WRITING:
            raise NotPermitted(f"content {digest}: a stored blob cannot be changed")
        content = self._subsystems.content
        if digest not in content or not content.path(digest).exists():
            content.forget(digest)
            descriptor = await self._typed()
            await caller.wait(lambda: self._subsystems.blobs.ensure(descriptor))
        else:
            self._subsystems.transfers.hit("blob", self._descriptor.size)
        info = content.info(digest)
        if info is not None and info.size != self._descriptor.size:
            # The kernel reads no further than the reported size, so a larger blob would be cut silently.
            raise VerificationFailed(
                f"content {digest}: has {info.size} bytes, {self._descriptor.size} were promised; read again"
            )
        return FileHandle(content.open(digest), f"content {digest}")

    async def _typed(self) -> Descriptor:
        """Return the descriptor with its media type, if the catalogue knows it."""
        own = self._descriptor
        known = None if own.media_type else await self._subsystems.catalog.descriptor(own.digest)
        return Descriptor(own.digest, own.size, known.media_type) if known else own

    async def xattr(self, name: bytes, caller: Caller) -> bytes | None:
        """Return one xattr. `ls -l` asks each file for ACLs and security labels; those cost no database query."""
        return await super().xattr(name, caller) if name.startswith(b"user.") else None

    async def xattrs(self) -> dict[bytes, bytes]:
        digest = self._descriptor.digest
        info = self._subsystems.content.info(digest)
        transfer = self._subsystems.transfers.get(digest)
        resident = info.size if info else transfer.offset if transfer else 0
        facts: dict[str, str | None] = {
            "size": str(info.size if info else self._descriptor.size),
            "media_type": (await self._typed()).media_type or None,
            "source": ", ".join(str(source) for source in await self._subsystems.catalog.sources(digest)) or None,
            "verified": "blob" if info else None,
            "resident": str(resident),
            "error": self._subsystems.failures.get(digest),
        }
        found = {f"user.imgfs.{key}".encode(): value.encode() for key, value in facts.items() if value is not None}
        return found | as_xattrs(self._subsystems.content.labels(digest))

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Label a stored blob. Only root and the owner may set labels that the garbage collector obeys."""
        digest, key = self._descriptor.digest, self._label_key(name, caller)
        with self._subsystems.failures.noting(digest):
            await self._subsystems.content.set_label(digest, key, value)

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        digest, key = self._descriptor.digest, self._label_key(name, caller)
        if key not in self._subsystems.content.labels(digest):
            raise NoAttribute(f"{name!r}: no such attribute")
        await self._subsystems.content.remove_label(digest, key)

    def _label_key(self, name: bytes, caller: Caller) -> str:
        key = label_key(name)
        if key.startswith("containerd.io/gc.") and caller.uid not in (0, self._subsystems.shown.uid):
            raise NotPermitted(f"label {key}: controls garbage collection; only root and the owner may set it")
        return key
