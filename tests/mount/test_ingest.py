"""content/ingest/: an unfinished write is a file, resumable and truncatable, with one writer for each ref."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from tests.mount.ingesting import APPEND, blob_of, commit, declare, put, size, writing, xattrs
from tests.mount.scene import Scene, error_of, refused, serving


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("ingest")) as made:
        yield made


@pytest.fixture
def at(scene: Scene, request: pytest.FixtureRequest) -> Path:
    """Return a ref that no other test uses."""
    return scene.mount.content / "ingest" / request.node.name.replace("/", "_")[:200]


def test_an_ingest_is_a_file_of_its_size_that_nobody_reads(at: Path) -> None:
    put(at, b"12345")
    found = at.stat()
    assert (stat.filemode(found.st_mode), found.st_size, found.st_nlink) == ("--w-------", 5, 1)
    assert at.name in os.listdir(at.parent)
    with refused(errno.EPERM):
        at.read_bytes()
    with writing(at) as file, refused(errno.EBADF):
        os.read(file, 1)
    with writing(at, os.O_RDWR) as file:
        os.lseek(file, 5, os.SEEK_SET)
        os.write(file, b"6")
        with refused(errno.EPERM):
            os.pread(file, 1, 0)


def test_it_resumes_at_its_size(at: Path) -> None:
    put(at, b"first ")
    with writing(at) as file:
        os.lseek(file, size(at), os.SEEK_SET)
        os.write(file, b"second")
    assert commit(at, b"first second").read_bytes() == b"first second"


def test_append_continues_whoever_opens_it(at: Path) -> None:
    for piece in (b"a", b"b" * 5000, b"c"):
        with writing(at, APPEND) as file:
            os.write(file, piece)
            os.write(file, piece)
    commit(at, b"aa" + b"b" * 10000 + b"cc")


def test_another_offset_is_a_range_error_and_changes_nothing(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"12345")
        for offset in (1, 4, 6, 4096, 1 << 40):
            with refused(errno.ERANGE):
                os.pwrite(file, b"x", offset)
        assert "expected 5" in error_of(at)
        assert size(file) == size(at) == 5
        assert os.pwrite(file, b"6", 5) == 1
    commit(at, b"123456")


def test_a_write_at_0_starts_again(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"wrong bytes")
        os.pwrite(file, b"right", 0)
        assert size(at) == 5
    commit(at, b"right")


def test_truncating_by_descriptor_keeps_the_lock(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"wrong")
        os.ftruncate(file, 5)
        os.ftruncate(file, 0)
        assert size(file) == 0
        with refused(errno.EBUSY):
            os.truncate(at, 0)
        os.pwrite(file, b"fresh", 0)
    commit(at, b"fresh")


@pytest.mark.parametrize("length", [1, 4, 6, 1 << 40])
def test_truncating_to_another_size_is_invalid(at: Path, length: int) -> None:
    with writing(at) as file:
        os.write(file, b"12345")
        with refused(errno.EINVAL):
            os.ftruncate(file, length)
    with refused(errno.EINVAL):
        os.truncate(at, length)
    assert "truncate" in error_of(at)
    os.truncate(at, 5)
    assert size(at) == 5


def test_a_second_writer_is_busy_and_its_truncation_touches_nothing(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"12")
        for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, APPEND):
            with refused(errno.EBUSY):
                os.open(at, flags)
        assert "another writer" in error_of(at)
        assert size(at) == 2
        os.write(file, b"34")
    commit(at, b"1234")


def test_a_dup_is_the_same_writer_until_the_last_one_closes(at: Path) -> None:
    with writing(at) as file:
        other = os.dup(file)
        os.write(file, b"1")
    with refused(errno.EBUSY):
        os.open(at, os.O_WRONLY)
    os.write(other, b"2")
    os.close(other)
    commit(at, b"12")


def test_opening_right_after_close_never_meets_the_closing_writer(at: Path) -> None:
    for _ in range(100):
        with writing(at, APPEND) as file:
            os.write(file, b"x")
    assert size(at) == 100


def test_rm_aborts_and_the_writer_is_told(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"12345")
        os.unlink(at)
        assert at.name not in os.listdir(at.parent)
        for attempt in (
            lambda: os.write(file, b"x"),
            lambda: os.ftruncate(file, 0),
            lambda: os.fsync(file),
        ):
            with refused(errno.ECANCELED):
                attempt()
        assert (os.fstat(file).st_nlink, os.fstat(file).st_size) == (0, 5)
        with refused(errno.ENOENT):
            os.unlink(at)


def test_a_new_writer_of_an_aborted_ref_is_another_one(at: Path) -> None:
    with writing(at) as old:
        os.write(old, b"old")
        os.unlink(at)
        with writing(at) as new:
            os.write(new, b"new!")
            with refused(errno.ECANCELED):
                os.write(old, b"x")
            with refused(errno.ENOENT):
                declare(old, total=1)
            assert (os.fstat(old).st_nlink, os.fstat(old).st_size) == (0, 3)
            assert (os.fstat(new).st_nlink, os.fstat(new).st_size) == (1, 4)
            os.write(new, b"?")
    commit(at, b"new!?")


def test_rm_of_an_idle_one_leaves_nothing(at: Path, scene: Scene) -> None:
    before = os.listdir(scene.mount.state / "ingest")
    put(at, b"12345")
    os.unlink(at)
    assert os.listdir(scene.mount.state / "ingest") == before
    with writing(at):
        assert size(at) == 0
    os.unlink(at)


def test_nothing_but_files_is_made_and_nothing_is_moved_in(at: Path) -> None:
    blob = blob_of(at, b"made elsewhere")
    other = put(at.with_name(f"{at.name}-other"), b"1")
    for attempt in (
        lambda: os.mkdir(at),
        lambda: os.symlink("x", at),
        lambda: os.mkfifo(at),
        lambda: os.mknod(at, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
        lambda: os.mknod(at, 0o600 | stat.S_IFSOCK),
        lambda: os.link(blob, at),
        lambda: os.link(other, at),
        lambda: os.rename(blob, at),
    ):
        with refused(errno.EPERM):
            attempt()
        assert at.name not in os.listdir(at.parent)
    os.unlink(other)


def test_opening_to_read_makes_nothing(at: Path) -> None:
    with refused(errno.EPERM):
        os.open(at, os.O_RDONLY | os.O_CREAT)
    assert at.name not in os.listdir(at.parent)


def test_opening_to_read_neither_truncates_nor_holds_off_a_writer(at: Path) -> None:
    put(at, b"1")
    with refused(errno.EPERM):
        os.open(at, os.O_RDONLY | os.O_TRUNC)
    with at.open("rb"), writing(at, os.O_WRONLY | os.O_APPEND) as file:
        os.write(file, b"2")
    assert size(at) == 2


@pytest.mark.parametrize("name", ["n" * 256, "a\nb", "a\x7fb", "a\x1bb"])
def test_a_malformed_ref_is_invalid_and_to_mv_not_permitted(at: Path, name: str) -> None:
    put(at, b"1")
    with refused(errno.EINVAL):
        os.open(at.with_name(name), os.O_WRONLY | os.O_CREAT)
    with refused(errno.EPERM):
        os.rename(at, at.with_name(name))
    with refused(errno.ENOENT):
        os.stat(at.with_name(name))
    assert size(at) == 1


@pytest.mark.parametrize(
    "name",
    ["n" * 255, "library%2Falpine:3.20", "%2F", "%2f", "%", "a b", "-f", "ü" * 127, "\udcff\udcfe", ".hidden", "..."],
)
def test_any_other_name_is_a_ref(at: Path, name: str, scene: Scene) -> None:
    path = at.with_name(name)
    put(path, os.fsencode(name))
    assert name in os.listdir(at.parent)
    assert size(path) == len(os.fsencode(name))
    with refused(errno.EBADMSG):
        commit(path, b"others")
    assert Digest.of(os.fsencode(name)) in error_of(path)
    commit(path, os.fsencode(name))
    assert name not in os.listdir(at.parent)


def test_a_slash_in_a_ref_is_percent_2f(at: Path, scene: Scene) -> None:
    for name in ("a%2Fb", "a/b"):
        path = at.parent / name
        if "/" in name:
            with refused(errno.ENOENT):
                os.open(path, os.O_WRONLY | os.O_CREAT)
        else:
            put(path, b"slash")
    assert 'ref": "a/b"' in "".join(one.read_text() for one in scene.mount.state.glob("ingest/*/meta"))
    commit(at.parent / "a%2Fb", b"slash")


def test_times_and_owners_are_taken_and_mean_nothing(at: Path) -> None:
    with writing(at) as file:
        os.write(file, b"1")
        os.fchmod(file, 0o644)
        os.fchown(file, 1000, 1000)
        os.utime(file, (0, 0))
    found = at.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o200, os.getuid())
    assert found.st_mtime > 0
    os.unlink(at)


def test_large_writes_arrive_whole_and_in_order(at: Path) -> None:
    piece = os.urandom(1 << 20)
    with writing(at) as file:
        for number in range(8):
            assert os.write(file, piece) == 1 << 20
            assert size(at) == (number + 1) << 20
        assert os.writev(file, [piece[:10], piece[:4097], piece * 4]) == 10 + 4097 + (4 << 20)
    assert xattrs(at)["digest"] == Digest.of(piece * 8 + piece[:10] + piece[:4097] + piece * 4)
    data = piece * 8 + piece[:10] + piece[:4097] + piece * 4
    assert commit(at, data).read_bytes() == data


def test_unaligned_writes_arrive_whole_and_in_order(at: Path) -> None:
    data = os.urandom(300_000)
    position = 0
    with writing(at, APPEND) as file:
        for length in (1, 4095, 4096, 4097, 65_537, 1, 131_071, 90_000):
            position += os.write(file, data[position : position + length])
    commit(at, data[:position])


def test_listing_is_the_progress(at: Path) -> None:
    with writing(at) as file:
        for number in range(3):
            os.write(file, b"x" * 1000)
            with os.scandir(at.parent) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
            assert sizes[at.name] == (number + 1) * 1000
    os.unlink(at)
