"""Turn errors into exit codes and a message on stderr: what failed, what to do, and where to find out more.

0 ok, 1 other, 2 usage, 3 not found, 4 denied, 5 network, 6 verification failed, 7 busy, 8 no space, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

import click

from imgfs.errors import ImgfsError, too_many_open

EXIT_CODES = (
    "Exit codes: 0 ok, 1 other, 2 usage, 3 not found, 4 denied, 5 network, 6 verification failed, 7 busy, "
    "8 no space, 130 interrupted."
)
INTERRUPTED = 130
_CODES = {
    errno.EINVAL: 2,
    errno.ENOENT: 3,
    errno.EACCES: 4,
    errno.EPERM: 4,
    errno.EREMOTEIO: 5,
    errno.EHOSTUNREACH: 5,
    errno.ETIMEDOUT: 5,
    errno.EDQUOT: 5,
    errno.EBADMSG: 6,
    errno.EFBIG: 6,
    errno.EBUSY: 7,
    errno.ENOSPC: 8,
    errno.EINTR: INTERRUPTED,
}


def exit_code(number: int) -> int:
    """Return the exit code for an errno."""
    return _CODES.get(number, 1)


class Failure(click.ClickException):
    """A failed command. `message` says what failed and what to do next, `number` is the errno, and `more` names the
    place with more details.
    """

    def __init__(self, message: str, number: int, more: str = "") -> None:
        super().__init__(message)
        self.number = number
        self.more = more
        self.exit_code = exit_code(number)  # pyright: ignore[reportAttributeAccessIssue] - a class variable in click

    def show(self, file: object = None) -> None:
        """Print the message on stderr, and a second line that points to `more` if it is set."""
        report_line(self.message)
        if self.more:
            report_line(f"for more see {self.more}")


def report_line(text: str) -> None:
    """Print a line on stderr.

    A stderr that cannot be written to (full disk, closed pipe) is ignored: the command continues.
    """
    with suppress(OSError):
        click.echo(f"imgfs: {printable(text)}", err=True)


def raise_first(failures: Sequence[Failure]) -> None:
    """Raise the first of `failures`, after printing the others. For commands that continue after a failure."""
    for failure in failures[1:]:
        failure.show()
    if failures:
        raise failures[0]


def printable(text: str) -> str:
    """Return `text` on one line without terminal control characters. Registries and images supply parts of messages."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def from_error(error: ImgfsError, more: str = "") -> Failure:
    """Make a Failure from an ImgfsError."""
    return Failure(error.message, error.errno, more)


def from_os_error(error: OSError, subject: str, reason: str | None = None, more: str = "") -> Failure:
    """Make a Failure from an errno that the mount returned, with the daemon's own reason if it gave one.

    `subject` is empty if the failing object is unknown.
    """
    number = error.errno or errno.EIO
    of = f"{subject}: " if subject else ""
    if number in (errno.ENOTCONN, errno.ECONNABORTED):
        return Failure(f"{of}the daemon of the mount has ended; `imgfs mount` starts it again", number, more)
    if number == errno.EINTR:
        return Failure(f"{of}interrupted by a signal, or because the daemon is stopping", number, more)
    if number == errno.ENOSPC and reason is None:
        reason = f"{of}{os.strerror(number)}; make room on that disk (its own: `imgfs gc`) and try again"
    if reason is None and (advice := too_many_open(number)):
        reason = f"{of}{os.strerror(number)}; {advice}"
    return Failure(reason or f"{of}{os.strerror(number)}", number, more)
