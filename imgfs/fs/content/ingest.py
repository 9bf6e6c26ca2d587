"""content/ingest/: unfinished writes as files.

A ref is a truncatable, resumable writer; `mv` into content/ commits it.

Unverified bytes cannot be read. Opening an ingest for reading still succeeds, because `rsync --append` does so, reads
nothing and continues at the end. chmod, chown and utimes succeed and change nothing, so that `cp -p` and `rsync -a`
work.
"""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager

import pyfuse3

from imgfs.content.ingests.committer import check_total
from imgfs.content.ingests.downloads import download_ref
from imgfs.content.ingests.refs import parse_ref, promised_digest, ref_name
from imgfs.content.ingests.status import IngestStatus
from imgfs.content.ingests.store import IngestWriter
from imgfs.errors import AlreadyExists, Invalid, NoSpace, NotFound, NotPermitted, StorageFailed, TimedOut, Unsupported
from imgfs.failures import Failures
from imgfs.fs.caller import Caller
from imgfs.fs.node import Directory, Handle, Listing, NoAttribute, Node, control_number, missing
from imgfs.fs.subsystems import IngestSubsystems
from imgfs.fs.xattrs import as_error, as_moment
from imgfs.gc.quota import WriteQuota
from imgfs.oci.digest import Digest

_TOTAL, _EXPECTED, _DIGEST = b"user.imgfs.total", b"user.imgfs.expected", b"user.imgfs.digest"


class IngestDirectory(Directory):
    """Lists unfinished writes, including imgfs's own downloads: a growing size is the progress."""

    __slots__ = ("_subsystems",)

    def __init__(self, subsystems: IngestSubsystems) -> None:
        super().__init__("content/ingest", subsystems.shown)
        self._subsystems = subsystems

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        try:
            ref = parse_ref(os.fsdecode(name))
        except Invalid:
            raise missing(name) from None
        if ref not in self._subsystems.ingests:
            raise missing(name)
        return IngestFile(self._subsystems, ref)

    async def entries(self, caller: Caller) -> Listing:
        return [
            (os.fsencode(ref_name(status.ref)), IngestFile(self._subsystems, status.ref))
            for status in self._subsystems.ingests
        ]

    def has_literally(self, name: str) -> bool:
        return name.replace("%2F", "/") in self._subsystems.ingests

    async def make_file(self, name: bytes, flags: int, caller: Caller) -> Node:
        """Start a writer. Raises AlreadyExists for a ref `<kind>-<digest>` whose digest is stored."""
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise NotPermitted(f"ingest {os.fsdecode(name)}: does not exist; open it for writing to start it")
        with self._noting(name):
            writer = await self._subsystems.ingests.open(os.fsdecode(name))
            await writer.close()
        return IngestFile(self._subsystems, writer.ref)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        """Abort a write. Readers that wait for imgfs's own download get an error too."""
        ref = parse_ref(os.fsdecode(name))
        digest = promised_digest(ref)
        # A download that waits for its registry would not notice that its writer is gone.
        cancelled = digest is not None and ref == download_ref(digest) and self._subsystems.blobs.cancel(digest)
        try:
            await self._subsystems.ingests.abort(ref)
        except NotFound:
            if not cancelled:
                raise

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        """Commit, or rename the ref."""
        old = self.canonical(old)
        ref = parse_ref(os.fsdecode(old))
        with self._noting(old):
            if flags & ~pyfuse3.RENAME_NOREPLACE:
                raise NotPermitted(f"ingest {ref}: cannot be exchanged")
            if target.number == control_number("content"):
                await self._commit(ref, os.fsdecode(new), caller)
            elif target.number == self.number:
                await self._rename(ref, os.fsdecode(new), flags)
            else:
                raise NotPermitted("an ingest is committed by moving it to content/<digest>")

    async def _commit(self, ref: str, name: str, caller: Caller) -> None:
        try:
            digest = Digest.parse(name)
        except Invalid as error:
            # mv reports EINVAL of rename(2) as "a subdirectory of itself".
            raise NotPermitted(f"ingest {ref}: {error.message}") from None
        await caller.wait(lambda: self._subsystems.ingests.commit(ref, digest))

    async def _rename(self, ref: str, new: str, flags: int) -> None:
        try:
            taken = parse_ref(new) in self._subsystems.ingests
        except Invalid as error:
            raise NotPermitted(error.message) from None
        if taken and flags & pyfuse3.RENAME_NOREPLACE:
            raise AlreadyExists(f"ingest {new}: exists; choose another ref")
        await self._subsystems.ingests.rename(ref, new)

    def _noting(self, name: bytes) -> AbstractContextManager[None]:
        return self._subsystems.failures.noting(f"content/ingest/{os.fsdecode(name)}")


class IngestFile(Node):
    """One unfinished write. It stays a file while it is open, also after its name is removed."""

    __slots__ = ("_ref", "_seen", "_subsystems")

    direct_io = True

    def __init__(self, subsystems: IngestSubsystems, ref: str) -> None:
        self._seen = subsystems.ingests.status(ref)
        # A ref that was removed and started again is another inode: a descriptor of the old writer stays with the old
        # one.
        super().__init__(control_number(f"content/ingest/{ref}\0{self._seen.started}"))
        self._subsystems = subsystems
        self._ref = ref

    async def attributes(self) -> pyfuse3.EntryAttributes:
        named = self._named()
        self._seen = seen = named or self._seen
        entry = self._subsystems.shown.entry(self.number, stat.S_IFREG | 0o200, size=seen.offset, time=seen.updated)
        if named is None:
            entry.st_nlink = 0
        return entry

    async def open(self, flags: int, caller: Caller) -> Handle:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            if flags & os.O_TRUNC:
                raise NotPermitted(f"ingest {self._ref}: open it for writing to truncate it")
            return _SealedHandle(self._known_ref())
        with self._noting():
            writer = await self._subsystems.ingests.open(self._known_ref())
            try:
                if flags & os.O_TRUNC:
                    await writer.truncate(0)
            except BaseException:
                await writer.close()
                raise
        return WriterHandle(writer, self._subsystems.failures, self._subsystems.allowance)

    async def change(self, fields: pyfuse3.SetattrFields, caller: Caller) -> None:
        """Accept chmod, chown and utimes, and change nothing."""

    async def truncate(self, size: int, handle: Handle | None, caller: Caller) -> None:
        """Truncate. An open descriptor uses its own writer; a path takes the writer's lock briefly."""
        if isinstance(handle, WriterHandle):
            await handle.truncate(size)
            return
        with self._noting():
            async with await self._subsystems.ingests.open(self._known_ref()) as writer:
                await writer.truncate(size)

    async def xattrs(self) -> dict[bytes, bytes]:
        status = self._status()
        facts = {
            _TOTAL: None if status.total is None else str(status.total),
            _EXPECTED: status.expected,
            # The value may be of a prefix only: xattr() waits for the digest of all bytes.
            _DIGEST: status.digest if self._named() or status.hashed == status.offset else None,
            b"user.imgfs.started": os.fsdecode(as_moment(status.started)),
        }
        found = {name: os.fsencode(value) for name, value in facts.items() if value is not None}
        return found | as_error(self._subsystems.failures.get(_subject(self._ref)))

    async def xattr(self, name: bytes, caller: Caller) -> bytes | None:
        """Return one xattr. After a restart, `user.imgfs.digest` waits until the bytes on disk are hashed again."""
        status = self._status()
        if name == _DIGEST and status.hashed != status.offset and self._named():
            try:
                return os.fsencode(await caller.wait(lambda: self._subsystems.ingests.digest(self._ref)))
            except NotFound:
                pass  # committed meanwhile: the file has no name any more, and its last state is reported
            except (StorageFailed, TimedOut) as error:
                self._subsystems.failures.note(_subject(self._ref), error)
                raise
        return await super().xattr(name, caller)

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Declare total or expected digest. The latest value wins, also while a writer is open."""
        if name.startswith(b"system."):
            # cp -p and mv accept EOPNOTSUPP as a filesystem without ACLs and then chmod; they report EPERM as an error.
            raise Unsupported(f"ingest {self._ref}: has no {os.fsdecode(name)}")
        ingests = self._subsystems.ingests
        with self._noting():
            if name == _TOTAL:
                total = _number(value)
                check_total(total)
                await self._subsystems.allowance.check(total - self._status().offset)
                await ingests.declare(self._known_ref(), total=total)
            elif name == _EXPECTED:
                await ingests.declare(self._known_ref(), expected=Digest.parse(os.fsdecode(value).strip()))
            else:
                raise self.refusal()

    async def remove_xattr(self, name: bytes, caller: Caller) -> None:
        if name not in await self.xattrs():
            raise NoAttribute(f"{name!r}: no such attribute")
        if name == _TOTAL:
            await self._subsystems.ingests.declare(self._known_ref(), total=None)
        elif name == _EXPECTED:
            await self._subsystems.ingests.declare(self._known_ref(), expected=None)
        else:
            raise self.refusal()

    def _noting(self) -> AbstractContextManager[None]:
        return self._subsystems.failures.noting(_subject(self._ref))

    def _status(self) -> IngestStatus:
        self._seen = self._named() or self._seen
        return self._seen

    def _named(self) -> IngestStatus | None:
        """Return the ref if it still belongs to this write. Raises NotFound."""
        ingests = self._subsystems.ingests
        status = ingests.status(self._ref) if self._ref in ingests else None
        return status if status and status.started == self._seen.started else None

    def _known_ref(self) -> str:
        if self._named() is None:
            raise NotFound(f"ingest {self._ref}: was removed")
        return self._ref


class _SealedHandle:
    """An ingest opened for reading. It is no writer, takes no lock and returns no bytes."""

    __slots__ = ("_ref",)

    def __init__(self, ref: str) -> None:
        self._ref = ref

    async def read(self, offset: int, size: int) -> bytes:
        raise NotPermitted(f"ingest {self._ref}: unverified bytes cannot be read; commit it first")

    async def close(self) -> None:
        """Do nothing."""


class WriterHandle(_SealedHandle):
    """An ingest opened for writing. Closing it does not commit."""

    __slots__ = ("_allowance", "_failures", "_writer")

    def __init__(self, writer: IngestWriter, failures: Failures, allowance: WriteQuota) -> None:
        super().__init__(writer.ref)
        self._writer = writer
        self._failures = failures
        self._allowance = allowance

    async def write(self, offset: int, data: bytes) -> int:
        """Return the number of written bytes: fewer than `data` if the disk is full."""
        with self._noting():
            await self._allowance.take(len(data))
            try:
                await self._writer.write_at(offset, data)
            except NoSpace:
                if offset < self._writer.offset <= offset + len(data):
                    return self._writer.offset - offset
                raise
        return len(data)

    async def truncate(self, size: int) -> None:
        """Truncate under the writer's own lock."""
        with self._noting():
            await self._writer.truncate(size)

    async def fsync(self) -> None:
        """Make the bytes written so far durable."""
        with self._noting():
            await self._writer.fsync()

    async def close(self) -> None:
        await self._writer.close()

    def _noting(self) -> AbstractContextManager[None]:
        return self._failures.noting(_subject(self._writer.ref))


def _subject(ref: str) -> str:
    """Return the subject under which failures of a ref are noted."""
    return f"content/ingest/{ref_name(ref)}"


def _number(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 19:
        raise Invalid(f"{_TOTAL.decode()}: got {value[:40]!r}, expected a number of bytes")
    return int(text)
