"""All errors that imgfs raises on purpose: one tree of classes, each with one errno.

The errno is part of the contract (docs/reference/SEMANTICS.md): fs/ returns it to the kernel, and the command line
turns it into an exit code. A message contains the subject, what was got and expected, and what to do next. It never
contains a credential or the query of a URL.
"""

from __future__ import annotations

import errno
import os


class ImgfsError(Exception):
    """Base class. Caught as such only at the boundaries: fs/, cli/, and tasks that must survive one failing object."""

    errno: int = errno.EIO

    @property
    def message(self) -> str:
        """The message for the user."""
        return str(self.args[0]) if self.args else type(self).__name__


class NotFound(ImgfsError):
    """The object does not exist, according to its authority (the state directory, or the registry itself)."""

    errno = errno.ENOENT


class AlreadyExists(ImgfsError):
    """The name, key or digest is taken."""

    errno = errno.EEXIST


class Busy(ImgfsError):
    """The object is in use: by a live writer, by children, or by a mount."""

    errno = errno.EBUSY


class Invalid(ImgfsError):
    """The argument is malformed, independent of any state."""

    errno = errno.EINVAL


class NotPermitted(ImgfsError):
    """The operation is not possible on this object, for any user."""

    errno = errno.EPERM


class StateError(ImgfsError):
    """Base class of failures of the state directory's disk. The stored data may be intact."""


class ReadOnly(StateError):
    """A write into a committed snapshot or a view, or a change of a read-only state directory."""

    errno = errno.EROFS


class VerificationFailed(ImgfsError):
    """Bytes differ from their digest, size or diff ID."""

    errno = errno.EBADMSG


class SenderLeft(VerificationFailed):
    """The bytes were wrong and their sender is avoided for now; another host can be asked at once."""


class Malformed(ImgfsError):
    """Foreign bytes (tar, gzip, JSON, header) violate their format."""

    errno = errno.EBADMSG


class Truncated(Malformed):
    """Foreign bytes end too early. The data up to there is valid, so a retry can continue."""


class TooLarge(ImgfsError):
    """Foreign bytes exceed a limit of imgfs."""

    errno = errno.EFBIG


class Unsupported(ImgfsError):
    """The object is well-formed, but of a kind that imgfs does not support."""

    errno = errno.EOPNOTSUPP


class OffsetMismatch(ImgfsError):
    """A write at an offset that is neither the writer's current offset nor 0."""

    errno = errno.ERANGE


class Cancelled(ImgfsError):
    """The object was removed during the operation."""

    errno = errno.ECANCELED


class Interrupted(ImgfsError):
    """The waiting process has a pending signal, or the daemon is stopping."""

    errno = errno.EINTR


class Stopping(ImgfsError):
    """The daemon is stopping and accepts no new waiter. Unlike Interrupted, the caller must not retry."""

    errno = errno.ENOTCONN


class NoSpace(StateError):
    """The disk of the state directory is full."""

    errno = errno.ENOSPC


class StorageFailed(StateError):
    """The state directory could not be read or written."""

    errno = errno.EIO


class TooManyOpen(StateError):
    """The limit of open files is reached. The state of the object is unknown, including whether it exists."""

    errno = errno.EIO


class RemoteError(ImgfsError):
    """Base class of failures to get an answer from a registry. It never means that an object does not exist."""

    errno = errno.EREMOTEIO


class RegistryFailed(RemoteError):
    """The registry answered with an unusable status or body."""


class Garbled(RegistryFailed):
    """The answer is not HTTP."""


class RangeIgnored(RegistryFailed):
    """The registry answered a Range request with the whole blob."""


class Unreachable(RemoteError):
    """There is no route or DNS answer, or the connection was refused or reset before an answer."""

    errno = errno.EHOSTUNREACH


class TimedOut(RemoteError):
    """The registry did not answer, or stalled, for longer than the limit."""

    errno = errno.ETIMEDOUT


class AccessDenied(RemoteError):
    """The registry answered 401 to a fresh token, or 403."""

    errno = errno.EACCES


class RateLimited(RemoteError):
    """The registry still answers 429 after the retries."""

    errno = errno.EDQUOT


def from_os(error: OSError, subject: str) -> StateError:
    """Translate a failed system call on the state directory into NoSpace, ReadOnly, TooManyOpen or StorageFailed."""
    if error.errno == errno.EROFS:
        return ReadOnly(f"{subject}: the state directory lies on a read-only filesystem; remount it writable")
    reason = f"{subject}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{reason}; make room on the disk of the state directory (`imgfs gc`) and try again")
    if advice := too_many_open(error.errno):
        return TooManyOpen(f"{reason}; {advice}")
    return StorageFailed(f"{reason}; check the disk of the state directory")


def too_many_open(number: int | None) -> str | None:
    """Return the advice for EMFILE and ENFILE; None for another errno."""
    if number == errno.EMFILE:
        limit = os.sysconf("SC_OPEN_MAX")
        return f"the limit is {limit} open files; raise it (`ulimit -n`, LimitNOFILE= of a unit) and try again"
    if number == errno.ENFILE:
        return "the limit of the whole system is reached; close some files, or raise fs.file-max (sysctl)"
    return None


def opened_read_only(subject: str) -> ReadOnly:
    """Return the error for a change in a mount whose state directory was read-only at the start."""
    return ReadOnly(
        f"{subject}: the state directory was read-only when imgfs was mounted; make it writable and mount imgfs again"
    )
