"""The contract of a content store: the semantics of containerd's content.Store, by library and by mount."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from imgfs.errors import ImgfsError
from imgfs.oci.digest import Digest
from tests.contract.content_doors import DOORS, ContentDoor
from tests.contract.refusal import refused

NOBODYS = Digest.of(b"what nobody has written")


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContentDoor]:
    made = DOORS[request.param](tmp_path_factory.mktemp("content"))
    yield made
    made.close()


@pytest.fixture
def ref(request: pytest.FixtureRequest) -> str:
    """Return a ref that no other test uses."""
    return request.node.name.replace("/", "-")[:120]


def some(mark: str, size: int = 256) -> bytes:
    """Return bytes that depend on the mark."""
    return hashlib.shake_256(mark.encode()).digest(size)


def ingested(door: ContentDoor, ref: str, data: bytes) -> str:
    """Create an ingest of these bytes without a writer; return their digest."""
    with door.writer(ref) as writer:
        writer.write(data)
    return Digest.of(data)


def blob(door: ContentDoor, ref: str, data: bytes) -> str:
    """Store a blob of these bytes; return its digest."""
    digest = ingested(door, ref, data)
    door.commit(ref, digest)
    return digest


def test_writers_with_whatever_was_declared_become_blobs(door: ContentDoor, ref: str) -> None:
    """Four concurrent writers, one piece each in turn; they declare nothing, the size, the digest, or both."""
    contents = [some(f"{ref}{number}") for number in range(4)]
    digests = [str(Digest.of(data)) for data in contents]
    totals, expected = [None, 256, None, 256], [None, None, digests[2], digests[3]]
    writers = [door.writer(f"{ref}{n}", totals[n], expected[n]) for n in range(4)]
    for start in range(0, 256, 32):
        for writer, data in zip(writers, contents, strict=True):
            writer.write(data[start : start + 32])
    for number, writer in enumerate(writers):
        with writer:
            assert (writer.offset, f"{ref}{number}" in door.refs()) == (256, True)
        door.commit(f"{ref}{number}", digests[number])
        assert (door.size(digests[number]), f"{ref}{number}" in door.refs()) == (256, False)
        assert door.read_at(digests[number], 0, 1000) == contents[number]


def test_the_status_tells_how_far_it_is(door: ContentDoor, ref: str) -> None:
    data = some(ref)
    digest, last = Digest.of(data), 0
    with door.writer(ref, 256, digest) as writer:
        for start, end in ((0, 0), (0, 64), (64, 192), (192, 256)):
            if end > start:
                writer.write(data[start:end])
            found = door.status(ref)
            assert (found.offset, found.total, found.expected) == (end, 256, digest)
            assert found.digest == Digest.of(data[:end])
            assert found.updated >= last
            last = found.updated


def test_a_resumed_ingest_has_its_bytes_and_declarations(door: ContentDoor, ref: str) -> None:
    data = some(ref)
    with door.writer(ref, 256, Digest.of(data)) as writer:
        writer.write(data[:128])
        before = door.status(ref)
    assert door.status(ref) == before
    with door.writer(ref) as writer:
        assert (writer.offset, door.status(ref)) == (128, before)
        writer.write(data[128:])
    door.commit(ref, Digest.of(data))
    assert door.read_at(Digest.of(data), 0, 256) == data


def again(data: bytes, offset: int) -> tuple[int, bytes]:
    return 0, data


def on(data: bytes, offset: int) -> tuple[int, bytes]:
    return offset, data[offset:]


@pytest.mark.parametrize("resume", [again, on])
@pytest.mark.parametrize("size", [500, 5000, 50000])
@pytest.mark.parametrize("tenths", [0, 1, 5, 9, 10])
def test_a_resumed_writer_continues_or_starts_again(
    door: ContentDoor, ref: str, resume: Callable[[bytes, int], tuple[int, bytes]], size: int, tenths: int
) -> None:
    data, limit = some(ref, size), size * tenths // 10
    with door.writer(ref, size, Digest.of(data)) as writer:
        writer.write(data[:limit])
    with door.writer(ref, size, Digest.of(data)) as writer:
        offset, rest = resume(data, writer.offset)
        assert writer.offset == limit
        if offset == 0:
            writer.truncate(0)
        for start in range(0, len(rest), 1024):
            writer.write_at(offset + start, rest[start : start + 1024])
    door.commit(ref, Digest.of(data))
    assert door.read_at(Digest.of(data), 0, size + 1) == data


def test_bytes_at_another_offset_are_refused_and_change_nothing(door: ContentDoor, ref: str) -> None:
    with door.writer(ref, 8) as writer:
        writer.write(b"12345")
        for offset in (1, 4, 6, 4096):
            with refused(errno.ERANGE):
                writer.write_at(offset, b"x")
        with refused(errno.EFBIG):
            writer.write_at(5, b"6789")
        for size in (1, 6):
            with refused(errno.EINVAL):
                writer.truncate(size)
        writer.truncate(5)
        writer.sync()
    assert door.status(ref).digest == Digest.of(b"12345")
    door.abort(ref)


def test_a_stored_blob_is_not_stored_again(door: ContentDoor, ref: str) -> None:
    data = some(ref)
    digest = blob(door, ref, data)
    ingested(door, ref, data)
    with refused(errno.EEXIST):
        door.commit(ref, digest)
    assert ref not in door.refs()
    with refused(errno.EEXIST):
        door.writer(ref, None, digest)
    with refused(errno.EEXIST):
        door.writer(f"layer-{digest}")
    assert door.refs().isdisjoint({ref, f"layer-{digest}"})


def test_a_ref_has_one_writer_and_outlives_commits_that_fail(door: ContentDoor, ref: str) -> None:
    data, more = some(ref), some(ref) + b"more"
    with door.writer(ref) as writer:
        writer.write(more)
        with refused(errno.EBUSY):
            door.writer(ref)
        with refused(errno.EBUSY):
            door.commit(ref, Digest.of(more))
    with refused(errno.EBADMSG):
        door.commit(ref, Digest.of(data))
    with door.writer(ref, 300) as writer:
        assert writer.offset == 260
    with refused(errno.EBADMSG):
        door.commit(ref, Digest.of(more))
    with door.writer(ref, 260, NOBODYS):
        pass
    with refused(errno.EBADMSG):
        door.commit(ref, Digest.of(more))
    with door.writer(ref, 260, Digest.of(more)):
        pass
    door.commit(ref, Digest.of(more))
    with refused(errno.ENOENT):
        door.commit(ref, Digest.of(more))
    with door.writer(ref) as writer:
        assert writer.offset == 0
    door.abort(ref)


def test_one_of_many_equal_commits_succeeds(door: ContentDoor, ref: str) -> None:
    data = some(ref, 100_000)
    digest = Digest.of(data)
    for number in range(8):
        ingested(door, f"{ref}{number}", data)
    codes: list[int] = []

    def commit(number: int) -> None:
        try:
            door.commit(f"{ref}{number}", digest)
            codes.append(0)
        except (OSError, ImgfsError) as error:
            codes.append(error.errno or -1)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, *[errno.EEXIST] * 7]
    assert door.read_at(digest, 0, len(data)) == data
    assert not [one for one in door.refs() if one.startswith(ref)]


def test_a_small_blob_is_read_within_its_bounds(door: ContentDoor, ref: str) -> None:
    digest = blob(door, ref, b"six by")
    expected = {(0, 7): b"six by", (4, 100): b"by", (6, 1): b"", (100, 1): b"", (1, 2): b"ix", (0, 0): b""}
    assert {bounds: door.read_at(digest, *bounds) for bounds in expected} == expected


def test_an_empty_blob_is_a_blob(door: ContentDoor, ref: str) -> None:
    digest = blob(door, ref, b"")
    assert (door.size(digest), door.read_at(digest, 0, 10), digest in door.stored()) == (0, b"", True)
    door.delete(digest)


def test_blobs_of_sha512(door: ContentDoor, ref: str) -> None:
    data = some(ref)
    ingested(door, ref, data)
    digest = Digest.of(data, "sha512")
    door.commit(ref, digest)
    assert door.read_at(digest, 0, 256) == data


def test_labels_are_set_replaced_and_removed(door: ContentDoor, ref: str) -> None:
    digest = blob(door, ref, some(ref))
    assert door.labels(digest) == {}
    door.update(digest, {"k1": b"v1", "k2": b"v2", "containerd.io/gc.root": b"now"})
    door.update(digest, {"k1": b"new", "k2": None, "k3": b"\xff\0"})
    expected = {"k1": b"new", "k3": b"\xff\0", "containerd.io/gc.root": b"now"}
    assert door.labels(digest) == expected
    door.restart()
    assert door.labels(digest) == expected
    for labels in ({"k4": b"x" * 4096}, {"bad\n": b"1"}):
        with refused(errno.EINVAL):
            door.update(digest, labels)
    assert door.labels(digest) == expected
    with refused(errno.ENOENT):
        door.update(NOBODYS, {"k1": b"v1"})
    door.delete(digest)
    blob(door, ref, some(ref))
    assert door.labels(digest) == {}


def test_a_deleted_blob_is_gone_except_for_open_descriptors(door: ContentDoor, ref: str) -> None:
    data = some(ref)
    digest = blob(door, ref, data)
    file = door.open(digest)
    try:
        door.delete(digest)
        assert os.pread(file, 1000, 0) == data
    finally:
        os.close(file)
    for call in (door.delete, door.size, door.labels, door.open):
        with refused(errno.ENOENT):
            call(digest)
    assert digest not in door.stored()
    assert blob(door, ref, data) in door.stored()


def test_an_aborted_write_is_gone_and_its_writer_gets_an_error(door: ContentDoor, ref: str) -> None:
    with door.writer(ref) as writer:
        writer.write(b"to be lost")
        door.abort(ref)
        with refused(errno.ECANCELED):
            writer.write_at(10, b"more")
        with refused(errno.ENOENT):
            door.status(ref)
    with refused(errno.ENOENT):
        door.abort(ref)
    with door.writer(ref) as writer:
        assert writer.offset == 0
    door.abort(ref)


@pytest.mark.parametrize("name", ["a/b/c", "r" * 255, "ünïcode", "blank blank", "layer-x", "-", "%41", "\udcff"])
def test_a_ref_may_be_called_nearly_anything(door: ContentDoor, ref: str, name: str) -> None:
    data = some(name.encode(errors="surrogateescape").hex())
    digest = ingested(door, name, data)
    assert name in door.refs()
    assert door.status(name).offset == 256
    door.commit(name, digest)
    assert door.read_at(digest, 0, 256) == data


@pytest.mark.parametrize("name", ["tab\t", "line\n", "r" * 256])
def test_invalid_refs_are_refused(door: ContentDoor, name: str) -> None:
    with refused(errno.EINVAL, errno.ENAMETOOLONG):  # the kernel itself returns the second one
        door.writer(name)


@pytest.mark.parametrize("name", ["sha256:12", "md5:" + "0" * 32, "sha256:" + "A" * 64, "word"])
def test_a_commit_to_a_malformed_digest_changes_nothing(door: ContentDoor, ref: str, name: str) -> None:
    ingested(door, ref, b"something")
    with refused(errno.EINVAL, errno.EPERM):  # mv(1) prints a wrong message for EINVAL of rename(2)
        door.commit(ref, name)
    assert door.status(ref).offset == 9
    door.abort(ref)


def test_everything_survives_a_restart(door: ContentDoor, ref: str) -> None:
    data, other = some(ref), some(f"{ref} unfinished")
    digest = blob(door, ref, data)
    with door.writer(ref, 256, Digest.of(other)) as writer:
        writer.write(other[:100])
    before, refs, stored = door.status(ref), door.refs(), door.stored()
    door.restart()
    assert (door.refs(), door.stored(), digest in stored) == (refs, stored, True)
    with door.writer(ref) as writer:
        assert replace(door.status(ref), updated=before.updated) == before
        writer.write(other[100:])
    door.commit(ref, Digest.of(other))
    assert door.stored() == stored | {str(Digest.of(other))}
