"""The mount as a blob store for imports: blobs are written through content/ingest and read from content/.

An ingest that an interrupted run left is continued, a stored blob is skipped, and an ingest that another process writes
is waited for. A lease protects the blobs from garbage collection until their image has a name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import BinaryIO, TypeVar

from imgfs.archives.contract import Payload
from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.output import PIECE
from imgfs.cli.tree import Tree
from imgfs.errors import VerificationFailed
from imgfs.oci.digest import Digest, Hash

LEASE_SECONDS = 24 * 3600
"""Lifetime of the lease that a killed import leaves behind. A lease that is held open does not expire."""

TURN_SECONDS = 0.2
"""Seconds between two attempts to open an ingest that another process writes."""

DISCARDED = 500
"""Blobs that are discarded per call: the value of an xattr is limited to 64 KiB."""

T = TypeVar("T")


class MountStore:
    """The Store contract (archives/contract.py) on the mount. Create it with `leased_store`."""

    def __init__(self, tree: Tree, lease: str, waits: Callable[[str], object]) -> None:
        """`waits` is called with the ref each time another process is found writing it."""
        self._tree = tree
        self._lease = lease
        self._waits = waits
        self._pinned: set[Digest] = set()
        self._added: set[Digest] = set()

    def size_of(self, digest: Digest) -> int | None:
        """See Store. The blob is pinned before the lookup, so that it cannot be collected before it has a name."""
        self._pin(digest)
        try:
            os.getxattr(self._tree.blob(digest), "user.imgfs.verified")
            return int(os.getxattr(self._tree.blob(digest), "user.imgfs.size"))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODATA):
                return None
            raise self._failure(error, self._tree.blob(digest), f"blob {digest}") from None

    def put(self, digest: Digest, data: Payload) -> None:
        """See Store. If an earlier run left wrong bytes, they are dropped and the blob is written again if possible."""
        ref = f"import-{digest}"
        while self.size_of(digest) is None:
            try:
                resumed = self._fill(ref, data, expected=digest)
            except FileExistsError:
                return
            if self._commit(ref, digest):
                return
            if not resumed:
                raise VerificationFailed(f"blob {digest}: the archive has other bytes under this name")
            self._begin_again(digest, data)

    def take(self, name: str, data: Payload) -> Digest:
        """See Store."""
        key = hashlib.sha256(f"{data.size} {name}".encode()).hexdigest()
        ref = f"import-file-{key[:32]}"
        while True:
            running = hashlib.sha256()
            resumed = self._fill(ref, data, running=running)
            digest = Digest.from_hash(running)
            self._pin(digest)
            if self._commit(ref, digest):
                return digest
            if not resumed:
                raise VerificationFailed(f"archive member {name}: changed while it was read; import again")
            self._begin_again(name, data)

    def read(self, digest: Digest, offset: int, size: int) -> bytes:
        """See Store."""
        path = self._tree.blob(digest)
        try:
            with open(path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise self._failure(error, path, f"blob {digest}") from None

    def discard_all_but(self, kept: set[Digest]) -> None:
        """Remove the blobs that this run stored and that are not in `kept`.

        The daemon decides, because only the daemon knows whether another process refers to a blob by now.
        """
        unwanted = sorted(self._added - kept)
        for digest in unwanted:
            self._unpin(digest)
        for start in range(0, len(unwanted), DISCARDED):
            self._tree.discard(unwanted[start : start + DISCARDED])
        self._added &= kept

    def _fill(self, ref: str, data: Payload, running: Hash | None = None, expected: Digest | None = None) -> bool:
        """Write `data` from the end of the ingest on; `running` hashes all of it. Returns whether it was continued.

        Raises FileExistsError if the expected blob is stored by now.
        """
        path = self._tree.ingest(ref)
        try:
            with self._in_turn(ref, lambda: open(path, "ab", buffering=0)) as file:
                start = _start(file, data.size)
                os.setxattr(path, "user.imgfs.total", str(data.size).encode())
                if expected is not None:
                    os.setxattr(path, "user.imgfs.expected", expected.encode())
                at = 0
                while piece := _read(data):
                    if running is not None:
                        running.update(piece)
                    _write(file, piece[max(start - at, 0) :])
                    at += len(piece)
        except FileExistsError:
            raise
        except OSError as error:
            raise self._failure(error, path, f"ingest {ref}") from None
        return start > 0

    def _commit(self, ref: str, digest: Digest) -> bool:
        """Commit the ingest. Returns False if the digest differs; the ingest is removed then."""
        path = self._tree.ingest(ref)
        try:
            if digest in self._added:  # a lookup would tell the daemon that another process relies on the blob
                os.unlink(path)
                return True
            self._in_turn(ref, lambda: os.rename(path, self._tree.blob(digest)))
            self._added.add(digest)
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno == errno.ENOENT and self.size_of(digest) is not None:
                return True  # another process has stored it
            if error.errno != errno.EBADMSG:
                raise self._failure(error, path, f"blob {digest}") from None
            os.unlink(path)
            return False
        return True

    def _in_turn(self, ref: str, act: Callable[[], T]) -> T:
        """Return what `act` returns, once no other process has the ref open. The same archive may be imported twice.

        This process holds no ref while it waits, so two imports cannot deadlock.
        """
        while True:
            try:
                return act()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            self._waits(ref)
            time.sleep(TURN_SECONDS)

    def _begin_again(self, what: str, data: Payload) -> None:
        if not data.rewind():
            raise VerificationFailed(
                f"{what}: an interrupted import left other bytes, which are dropped now; import again"
            )

    def _pin(self, digest: Digest) -> None:
        if digest in self._pinned:
            return
        try:
            os.symlink(f"../../../content/{digest}", f"{self._lease}/{digest}")
        except OSError as error:
            raise self._failure(error, self._lease, f"blob {digest}") from None
        self._pinned.add(digest)

    def _unpin(self, digest: Digest) -> None:
        try:
            os.unlink(f"{self._lease}/{digest}")
        except OSError as error:
            raise self._failure(error, self._lease, f"blob {digest}") from None
        self._pinned.discard(digest)

    def _failure(self, error: OSError, path: str, subject: str) -> Failure:
        return self._tree.blob_failure(error, path, subject)


@contextmanager
def leased_store(tree: Tree, waits: Callable[[str], object]) -> Generator[MountStore]:
    """Yield a MountStore whose blobs are protected from garbage collection while the context is open."""
    lease = tree.lease(f"import-{uuid.uuid4().hex[:12]}")
    try:
        os.mkdir(lease)
        os.setxattr(lease, "user.imgfs.expires", str(int(time.time()) + LEASE_SECONDS).encode())
        held = os.open(lease, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, "import", None, tree.log) from None
    try:
        yield MountStore(tree, lease, waits)
    finally:
        os.close(held)
        with suppress(OSError):  # the lease expires
            os.rmdir(lease)


def _start(file: BinaryIO, size: int) -> int:
    """Return the offset to continue at; 0 if the ingest is longer than the blob."""
    start = os.fstat(file.fileno()).st_size
    if start <= size:
        return start
    os.truncate(file.fileno(), 0)
    return 0


def _read(data: Payload) -> bytes:
    try:
        return data.read(PIECE)
    except OSError as error:
        raise from_os_error(error, "archive") from None


def _write(file: BinaryIO, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]
