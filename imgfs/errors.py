"""Every error imgfs raises on purpose: one tree, and the one errno of each class.

The errno is the contract (SEMANTICS.md, "Errno"): fs/ answers the kernel with it and the command line turns it into
an exit code. A message names the subject first, then what was got and expected, then what to do next. It never holds
a credential or the query of a URL.
"""

from __future__ import annotations

import errno
import os


class ImgfsError(Exception):
    """Base of all; caught as such only at the doors (fs/, cli/, a task that must outlive one object)."""

    errno: int = errno.EIO

    @property
    def message(self) -> str:
        """The sentence a user reads."""
        return str(self.args[0]) if self.args else type(self).__name__


class NotFound(ImgfsError):
    """The object does not exist, by the word of whoever is the authority on it."""

    errno = errno.ENOENT


class AlreadyExists(ImgfsError):
    """The name, key or digest is taken."""

    errno = errno.EEXIST


class Busy(ImgfsError):
    """Somebody uses the object: a live writer, children, a mount."""

    errno = errno.EBUSY


class Invalid(ImgfsError):
    """The argument is malformed, whatever the state is."""

    errno = errno.EINVAL


class NotPermitted(ImgfsError):
    """The operation has no meaning on this object, for anybody."""

    errno = errno.EPERM


class StateError(ImgfsError):
    """Base of what the state directory can be in the way with; what is in it may be well."""


class ReadOnly(StateError):
    """A write into a committed snapshot or a view, or anything that would change a state directory that cannot be."""

    errno = errno.EROFS


class VerificationFailed(ImgfsError):
    """Bytes are not what their digest, size or diff ID promised."""

    errno = errno.EBADMSG


class SenderLeft(VerificationFailed):
    """The bytes were wrong, and their sender is left for now: there is somebody else to be asked for them at once."""


class Malformed(ImgfsError):
    """Foreign bytes (tar, gzip, JSON, header) break the rules of their format."""

    errno = errno.EBADMSG


class Truncated(Malformed):
    """Foreign bytes end too early: with the rest of them all may be well."""


class TooLarge(ImgfsError):
    """Foreign bytes exceed a limit of imgfs."""

    errno = errno.EFBIG


class Unsupported(ImgfsError):
    """Well-formed, but of a kind that imgfs does not serve."""

    errno = errno.EOPNOTSUPP


class OffsetMismatch(ImgfsError):
    """A write that is neither at the writer's offset nor at 0."""

    errno = errno.ERANGE


class Cancelled(ImgfsError):
    """The object was taken away from under the operation."""

    errno = errno.ECANCELED


class Interrupted(ImgfsError):
    """The waiting process has a signal to handle, or the daemon is stopping."""

    errno = errno.EINTR


class Stopping(ImgfsError):
    """The daemon is stopping, and nobody begins to wait any more: what is interrupted may be tried again, this not."""

    errno = errno.ENOTCONN


class NoSpace(StateError):
    """The disk of the state directory is full."""

    errno = errno.ENOSPC


class StorageFailed(StateError):
    """The state directory could not be read or written."""

    errno = errno.EIO


class TooManyOpen(StateError):
    """No more files can be opened now: what is in the state directory is not known, not even that it is there."""

    errno = errno.EIO


class RemoteError(ImgfsError):
    """Base of what can go wrong between here and a registry; never a statement about absence."""

    errno = errno.EREMOTEIO


class RegistryFailed(RemoteError):
    """The registry answered with a status or a body that helps nobody."""


class Garbled(RegistryFailed):
    """What came in place of an answer is not HTTP."""


class RangeIgnored(RegistryFailed):
    """The registry sends the whole where the rest was asked for."""


class Unreachable(RemoteError):
    """No route, no name, connection refused or reset before an answer."""

    errno = errno.EHOSTUNREACH


class TimedOut(RemoteError):
    """The registry did not answer, or stalled, for longer than the limit."""

    errno = errno.ETIMEDOUT


class AccessDenied(RemoteError):
    """401 with a fresh token, or 403."""

    errno = errno.EACCES


class RateLimited(RemoteError):
    """429 after the retries."""

    errno = errno.EDQUOT


def from_os(error: OSError, subject: str) -> StateError:
    """Say what a failed system call on the state directory means: NoSpace, ReadOnly, TooManyOpen or StorageFailed."""
    if error.errno == errno.EROFS:
        return ReadOnly(f"{subject}: the state directory lies on a read-only filesystem; remount it writable")
    reason = f"{subject}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{reason}; make room on the disk of the state directory (`imgfs gc`) and try again")
    if advice := too_many_open(error.errno):
        return TooManyOpen(f"{reason}; {advice}")
    return StorageFailed(f"{reason}; check the disk of the state directory")


def too_many_open(number: int | None) -> str | None:
    """What to do where no more files can be opened; None for another errno."""
    if number == errno.EMFILE:
        limit = os.sysconf("SC_OPEN_MAX")
        return f"{limit} at a time are allowed; raise that (`ulimit -n`, LimitNOFILE= of a unit) and try again"
    if number == errno.ENFILE:
        return "the whole system may have no more; close some, or raise fs.file-max (sysctl)"
    return None


def begun_read_only(subject: str) -> ReadOnly:
    """Why nothing changes in a mount that found its state directory read-only."""
    return ReadOnly(
        f"{subject}: the state directory was read-only when imgfs was mounted; remount it writable, mount imgfs anew"
    )
