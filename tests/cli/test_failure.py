"""An errno has one exit code, and what is printed cannot drive a terminal."""

from __future__ import annotations

import errno
import resource

import pytest

from imgfs import errors
from imgfs.cli.failure import Failure, exit_code, from_error, from_os_error, printable

CODES = [
    (errors.NotFound, 3),
    (errors.AccessDenied, 4),
    (errors.NotPermitted, 4),
    (errors.RegistryFailed, 5),
    (errors.Unreachable, 5),
    (errors.TimedOut, 5),
    (errors.RateLimited, 5),
    (errors.VerificationFailed, 6),
    (errors.Malformed, 6),
    (errors.Busy, 7),
    (errors.NoSpace, 8),
    (errors.Interrupted, 130),
    (errors.Invalid, 2),
    (errors.AlreadyExists, 1),
    (errors.Unsupported, 1),
    (errors.StorageFailed, 1),
]


@pytest.mark.parametrize(("error", "code"), CODES)
def test_each_error_has_the_exit_code_of_the_table(error: type[errors.ImgfsError], code: int) -> None:
    failure = from_error(error("x: broke"))
    assert (failure.exit_code, failure.message) == (code, "x: broke")


def test_unknown_errno_is_other() -> None:
    assert exit_code(errno.ELOOP) == 1


def test_os_error_takes_the_daemons_sentence() -> None:
    assert from_os_error(OSError(errno.EBADMSG, "Bad message"), "x", "layer 3 is wrong").message == "layer 3 is wrong"


def test_os_error_without_a_sentence_names_subject_and_errno() -> None:
    assert from_os_error(OSError(errno.EBADMSG, ""), "x").message == "x: Bad message"


def test_full_disk_is_told_with_what_makes_room() -> None:
    assert "`imgfs gc`" in from_os_error(OSError(errno.ENOSPC, ""), "import").message
    assert from_os_error(OSError(errno.ENOSPC, ""), "x", "the daemon's sentence").message == "the daemon's sentence"


def test_dead_daemon_is_told_even_where_an_old_sentence_is_left() -> None:
    failure = from_os_error(OSError(errno.ENOTCONN, ""), "x", "old news")
    assert "daemon" in failure.message
    assert failure.exit_code == 1


def test_interrupted_wait_is_told_even_where_an_old_sentence_is_left() -> None:
    failure = from_os_error(OSError(errno.EINTR, ""), "x", "old news")
    assert failure.message == "x: interrupted by a signal, or because the daemon is stopping"
    assert failure.exit_code == 130


def test_failure_prints_where_more_is_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    Failure("x: broke\x1b[2J\nbadly", errno.EIO, "the log").show()
    assert capsys.readouterr().err == "imgfs: x: broke\ufffd[2J badly\nimgfs: for more see the log\n"


def test_printable_leaves_letters_alone() -> None:
    assert printable("näme\t日本\udc80") == "näme 日本\ufffd"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_is_told_with_the_limit_and_what_to_do(number: int) -> None:
    message = from_os_error(OSError(number, "x"), "images").message
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert message.startswith("images: Too many open files")
    assert (
        f"the limit is {limit} open files; raise it (`ulimit -n`" if number == errno.EMFILE else "fs.file-max"
    ) in message


def test_what_nobody_knows_the_subject_of_is_told_without_one() -> None:
    assert from_os_error(OSError(errno.EIO, "x"), "").message == "Input/output error"
