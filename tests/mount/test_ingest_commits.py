"""content/ingest/: declarations of an unfinished write, and the rename that commits it or changes its ref."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from tests.mount.ingesting import APPEND, MALFORMED, blob_of, commit, declare, put, size, together, writing, xattrs
from tests.mount.scene import PATIENCE, Scene, error_of, refused, serving, small, until

AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("ingest")) as made:
        yield made


@pytest.fixture
def at(scene: Scene, request: pytest.FixtureRequest) -> Path:
    """Return a ref that no other test uses."""
    return scene.mount.content / "ingest" / request.node.name.replace("/", "_")[:200]


def test_what_was_written_is_committed_by_mv(at: Path) -> None:
    blob = blob_of(at, b"written")
    assert blob.read_bytes() == b"written"
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444
    assert not at.exists()
    assert at.name not in os.listdir(at.parent)
    assert blob.name in os.listdir(blob.parent)


def test_an_empty_one_can_be_committed(at: Path) -> None:
    assert blob_of(at, b"").read_bytes() == b""


def test_declarations_survive_every_way_to_start_again(at: Path) -> None:
    put(at, b"wrong")
    promise = Digest.of(b"right!")
    declare(at, total=6, expected=promise)
    for restart in (
        lambda: os.truncate(at, 0),
        lambda: os.close(os.open(at, os.O_WRONLY | os.O_TRUNC)),
        lambda: os.close(os.open(at, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)),
    ):
        with writing(at, APPEND) as file:
            os.write(file, b"more!"[size(at) :])
        restart()
        assert size(at) == 0
        assert xattrs(at)["total"] == "6"
        assert xattrs(at)["expected"] == promise
    put(at, b"right!")
    commit(at, b"right!")


def test_commit_under_a_writer_is_busy(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"12345 busy")
        with refused(errno.EBUSY):
            commit(at, b"12345 busy")
        with refused(errno.EBUSY):
            os.rename(at, at.with_name("elsewhere"))
    commit(at, b"12345 busy")


def test_a_commit_right_after_close_never_meets_the_closing_writer(at: Path) -> None:
    for number in range(100):
        blob_of(at, b"closing %d" % number)


def test_a_wrong_digest_is_a_bad_message_and_the_ingest_stays(at: Path) -> None:
    put(at, b"bytes")
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(b"others", algorithm)
        with refused(errno.EBADMSG):
            os.rename(at, at.parent.parent / digest)
        assert Digest.of(b"bytes", algorithm) in error_of(at)
    assert size(at) == 5
    with writing(at, APPEND) as file:
        os.write(file, b", more of them")
    commit(at, b"bytes, more of them")


def test_another_size_than_the_total_is_a_bad_message(at: Path) -> None:
    put(at, b"12345 total")
    declare(at, total=12)
    with refused(errno.EBADMSG):
        commit(at, b"12345 total")
    assert "expected 12" in error_of(at)
    declare(at, total=11)
    commit(at, b"12345 total")


def test_another_digest_than_the_expected_is_a_bad_message(at: Path) -> None:
    put(at, b"not what was expected")
    declare(at, expected=Digest.of(b"something else"))
    with refused(errno.EBADMSG):
        commit(at, b"not what was expected")
    os.removexattr(at, "user.imgfs.expected")
    commit(at, b"not what was expected")


def test_sha512_is_a_digest_too(at: Path) -> None:
    data = b"by another algorithm"
    put(at, data)
    declare(at, expected=Digest.of(data, "sha512"))
    blob = at.parent.parent / Digest.of(data, "sha512")
    os.rename(at, blob)
    assert blob.read_bytes() == data


def test_what_is_stored_already_exists_and_the_ingest_goes(at: Path) -> None:
    blob_of(at, b"stored")
    put(at, b"stored")
    with refused(errno.EEXIST):
        commit(at, b"stored")
    assert not at.exists()


@pytest.mark.parametrize("kind", ["layer", "config", "a-b", "manifest"])
def test_a_ref_that_promises_what_is_stored_exists_at_once(at: Path, kind: str) -> None:
    blob = blob_of(at, b"promised by %s" % kind.encode())
    ref = at.with_name(f"{kind}-{blob.name}")
    for flags in (os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, APPEND):
        with refused(errno.EEXIST):
            os.open(ref, flags)
    assert not ref.exists()
    put(at, b"something else")
    with refused(errno.EEXIST):
        os.rename(at, ref)
    assert not at.exists()


def test_a_ref_whose_promise_was_kept_meanwhile_is_dropped(at: Path) -> None:
    data = b"kept by somebody else"
    ref = at.with_name(f"layer-{Digest.of(data)}")
    put(ref, data[:4])
    blob_of(at, data)
    with refused(errno.EEXIST):
        os.open(ref, os.O_WRONLY)
    assert not ref.exists()


def test_a_ref_that_promises_what_is_not_stored_is_written_as_any(at: Path) -> None:
    data = b"promised and written"
    commit(put(at.with_name(f"layer-{Digest.of(data)}"), data), data)


def test_declaring_a_stored_digest_exists_at_once_also_for_the_writer(at: Path) -> None:
    blob = blob_of(at, b"declared")
    with writing(at) as file:
        os.write(file, b"decl")
        with refused(errno.EEXIST):
            declare(file, expected=blob.name)
        assert not at.exists()
        with refused(errno.EEXIST):
            os.write(file, b"ared")


def test_more_than_the_total_is_too_large(at: Path) -> None:
    with writing(at) as file:
        declare(file, total=5)
        os.write(file, b"1234")
        with refused(errno.EFBIG):
            os.write(file, b"56")
        assert "5 bytes" in error_of(at)
        with refused(errno.EFBIG):
            os.pwrite(file, b"123456", 0)
        assert size(at) == 4
        os.write(file, b"5")
        with refused(errno.EFBIG):
            os.write(file, b"6")
    assert xattrs(at)["digest"] == Digest.of(b"12345")


def test_a_total_below_what_is_there_is_too_large(at: Path) -> None:
    put(at, b"12345")
    with refused(errno.EFBIG):
        declare(at, total=4)
    declare(at, total=7)
    declare(at, total=5)
    assert xattrs(at)["total"] == "5"


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.5", b"0x10", b"9" * 19, b"9" * 40, b"\xb2", "²".encode()])
def test_a_total_that_is_no_number_is_invalid(at: Path, value: bytes) -> None:
    put(at, b"1")
    with refused(errno.EINVAL):
        os.setxattr(at, "user.imgfs.total", value)
    assert "total" in error_of(at)
    assert "total" not in xattrs(at)


@pytest.mark.parametrize("value", [*MALFORMED, "", "\udcff"])
def test_an_expected_digest_that_is_none_is_invalid(at: Path, value: str) -> None:
    put(at, b"1")
    with refused(errno.EINVAL):
        os.setxattr(at, "user.imgfs.expected", os.fsencode(value))
    assert "digest" in error_of(at)
    assert "expected" not in xattrs(at)


def test_facts_tell_the_running_state(at: Path) -> None:
    with writing(at) as file:
        for written in (b"", b"12", b"12345"):
            os.write(file, written[size(at) :])
            assert xattrs(at)["digest"] == Digest.of(written)
        started = xattrs(at)["started"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", started)
        declare(file, total="9\n", expected=f"{Digest.of(b'x', 'sha512')}\n")
        until(lambda: xattrs(at).get("digest") == Digest.of(b"12345", "sha512"))
        assert xattrs(at)["total"] == "9"
        os.ftruncate(file, 0)
        assert xattrs(at)["started"] == started
    assert set(xattrs(at)) == {"total", "expected", "digest", "started"}


def test_facts_are_not_for_anybody_to_change(at: Path) -> None:
    put(at, b"1")
    for name in ("user.imgfs.digest", "user.imgfs.started", "user.imgfs.other", "user.label.a"):
        with refused(errno.EPERM):
            os.setxattr(at, name, b"1")
    for name, code in (("started", errno.EPERM), ("total", errno.ENODATA), ("nonsense", errno.ENODATA)):
        with refused(code):
            os.removexattr(at, f"user.imgfs.{name}")


def test_the_latest_declaration_wins_and_can_be_taken_back(at: Path) -> None:
    put(at, b"taken back")
    for total in (11, 12):
        declare(at, total=total)
    assert xattrs(at)["total"] == "12"
    os.removexattr(at, "user.imgfs.total")
    commit(at, b"taken back")


def test_fsync_makes_durable_and_commits_nothing(at: Path, scene: Scene) -> None:
    with writing(at) as file:
        os.write(file, b"synced")
        os.fsync(file)
        os.fdatasync(file)
        os.write(file, b"!")
    assert not (at.parent.parent / Digest.of(b"synced")).exists()
    assert size(at) == 7
    commit(at, b"synced!")


@pytest.mark.parametrize("name", [*MALFORMED, ".imgfs", "ü" * 100])
def test_a_malformed_target_of_mv_is_not_permitted(at: Path, name: str) -> None:
    put(at, b"12345")
    with refused(errno.EPERM):
        os.rename(at, at.parent.parent / name)
    assert "digest" in error_of(at)
    assert size(at) == 5


def test_an_ingest_goes_nowhere_else(at: Path, scene: Scene) -> None:
    put(at, b"12345 nowhere")
    for directory in ("images", "snapshots", "snapshots/active"):
        with refused(errno.EPERM):
            os.rename(at, scene.mount.path / directory / Digest.of(b"12345 nowhere"))
    with refused(errno.EXDEV):
        os.rename(at, scene.mount.state / "outside")
    commit(at, b"12345 nowhere")


def test_a_ref_can_be_renamed_and_replaces_an_idle_one(at: Path) -> None:
    other = at.with_name(f"{at.name}-other")
    put(at, b"renamed")
    declare(at, total=7)
    started = xattrs(at)["started"]
    os.rename(at, other)
    assert not at.exists()
    assert xattrs(other) == {"total": "7", "started": started, "digest": Digest.of(b"renamed")}
    put(at, b"replaced")
    os.rename(other, at)
    assert not other.exists()
    with writing(other), refused(errno.EBUSY):
        os.rename(at, other)
    os.unlink(other)
    os.rename(at, at)
    commit(at, b"renamed")


def test_renaming_without_replacement_and_exchanging(at: Path) -> None:
    other = at.with_name(f"{at.name}-other")
    put(at, b"one")
    put(other, b"two")
    with refused(errno.EEXIST):
        renameat2(at, other, NOREPLACE)
    with refused(errno.EPERM):
        renameat2(at, other, EXCHANGE)
    os.unlink(other)
    renameat2(at, other, NOREPLACE)
    renameat2(other, at.parent.parent / Digest.of(b"one"), NOREPLACE)
    assert not other.exists()


def test_of_writers_that_race_one_writes(at: Path) -> None:
    data = b"by one of them"

    def write(_: int) -> int:
        try:
            file = os.open(at, os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            refusals.release()
            return error.errno or 0
        for _ in range(7):
            assert refusals.acquire(timeout=PATIENCE)
        os.write(file, data)
        os.close(file)
        return 0

    refusals = threading.Semaphore(0)
    results = together(8, write)
    assert sorted(results) == [0, *[errno.EBUSY] * 7]
    commit(at, data)


def test_of_commits_that_race_one_wins(at: Path) -> None:
    data = os.urandom(1 << 20)
    paths = [put(at.with_name(f"{at.name}-{number}"), data) for number in range(6)]

    def attempt(number: int) -> int:
        try:
            commit(paths[number], data)
        except OSError as error:
            return error.errno or 0
        return 0

    assert sorted(together(6, attempt)) == [0, *[errno.EEXIST] * 5]
    assert not [path for path in paths if path.exists()]
    assert (at.parent.parent / Digest.of(data)).read_bytes() == data


def test_of_commits_of_one_ref_one_wins(at: Path) -> None:
    data = os.urandom(1 << 20)
    put(at, data)

    def attempt(_: int) -> int:
        try:
            commit(at, data)
        except OSError as error:
            return error.errno or 0
        return 0

    results = sorted(together(6, attempt))
    assert results[0] == 0
    assert set(results[1:]) <= {errno.ENOENT, errno.EEXIST}


def test_a_blob_that_was_pushed_serves_the_image_that_mentions_it(at: Path, scene: Scene) -> None:
    made = small("pushed")
    os.stat(scene.serve(made, "pushed"))
    data = made.layers[0].blob
    with scene.silence():
        blob = blob_of(at, data)
        assert blob.read_bytes() == data
    with scene.requests("blob"):
        assert (scene.name("pushed") / "rootfs/mark").read_bytes() == b"pushed/0\n"


def renameat2(old: Path, new: Path, flags: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
