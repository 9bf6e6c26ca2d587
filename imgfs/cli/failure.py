"""From errors to exit codes and one sentence on stderr.

0 ok, 1 other, 2 usage, 3 not found, 4 denied, 5 network, 6 verification failed, 7 busy, 8 no space, 130 interrupted.
"""

from __future__ import annotations

import errno
import os

import click

from imgfs.errors import ImgfsError

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
    errno.EINTR: 130,
}


def exit_code(number: int) -> int:
    """The exit code for an errno."""
    return _CODES.get(number, 1)


class Failure(click.ClickException):
    """A command that failed: `message` says what and what to do next."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code(number)

    def show(self, file: object = None) -> None:
        """One line on stderr."""
        click.echo(f"imgfs: {self.message}", err=True)


def from_error(error: ImgfsError) -> Failure:
    """A failure out of one of imgfs's own errors."""
    return Failure(error.message, error.errno)


def from_os_error(error: OSError, subject: str, reason: str | None = None) -> Failure:
    """A failure out of an errno that the mount answered, with the daemon's own reason where it gave one."""
    number = error.errno or errno.EIO
    return Failure(reason or f"{subject}: {os.strerror(number)}", number)
