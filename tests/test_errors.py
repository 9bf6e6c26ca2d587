"""The error classes: each has its errno, and failed system calls are converted to them."""

from __future__ import annotations

import copy
import errno

import pytest

from imgfs import errors

ERRNO = {
    "ImgfsError": errno.EIO,
    "NotFound": errno.ENOENT,
    "AlreadyExists": errno.EEXIST,
    "Busy": errno.EBUSY,
    "Invalid": errno.EINVAL,
    "NotPermitted": errno.EPERM,
    "StateError": errno.EIO,
    "ReadOnly": errno.EROFS,
    "VerificationFailed": errno.EBADMSG,
    "SenderLeft": errno.EBADMSG,
    "Malformed": errno.EBADMSG,
    "Truncated": errno.EBADMSG,
    "TooLarge": errno.EFBIG,
    "Unsupported": errno.EOPNOTSUPP,
    "OffsetMismatch": errno.ERANGE,
    "Cancelled": errno.ECANCELED,
    "Interrupted": errno.EINTR,
    "Stopping": errno.ENOTCONN,
    "NoSpace": errno.ENOSPC,
    "StorageFailed": errno.EIO,
    "TooManyOpen": errno.EIO,
    "RemoteError": errno.EREMOTEIO,
    "RegistryFailed": errno.EREMOTEIO,
    "RangeIgnored": errno.EREMOTEIO,
    "Garbled": errno.EREMOTEIO,
    "Unreachable": errno.EHOSTUNREACH,
    "TimedOut": errno.ETIMEDOUT,
    "AccessDenied": errno.EACCES,
    "RateLimited": errno.EDQUOT,
}


def classes() -> dict[str, type[errors.ImgfsError]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.ImgfsError)
    }


def test_every_class_has_the_errno_of_the_contract() -> None:
    assert {name: found.errno for name, found in classes().items()} == ERRNO


def test_no_class_has_an_errno_that_programs_misread() -> None:
    assert not {errno.EAGAIN, errno.EXDEV} & {found.errno for found in classes().values()}


@pytest.mark.parametrize("found", classes().values(), ids=lambda found: found.__name__)
def test_a_message_survives_a_copy(found: type[errors.ImgfsError]) -> None:
    assert copy.copy(found("blob: is gone")).message == "blob: is gone"
    assert found().message == found.__name__


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, errors.NoSpace),
        (errno.EDQUOT, errors.NoSpace),
        (errno.EIO, errors.StorageFailed),
        (errno.EMFILE, errors.TooManyOpen),
    ],
)
def test_the_error_of_a_failed_system_call_has_subject_reason_and_remedy(
    number: int, kind: type[errors.ImgfsError]
) -> None:
    error = errors.from_os(OSError(number, "it broke"), "layer sha256:ab")
    assert type(error) is kind
    assert error.message.startswith("layer sha256:ab: it broke; ")


def test_a_read_only_disk_is_reported_as_read_only() -> None:
    error = errors.from_os(OSError(errno.EROFS, "Read-only file system"), "layer sha256:ab")
    assert type(error) is errors.ReadOnly
    assert "remount it writable" in error.message


def test_too_many_open_files_is_not_reported_as_a_disk_failure() -> None:
    message = errors.from_os(OSError(errno.EMFILE, "Too many open files"), "blob x").message
    assert "open files; raise it (`ulimit -n`" in message
    assert "disk" not in message
