"""A disk that fails behind the page cache: memory has bytes that the disk lost, and the kernel reports it only once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imgfs.content.ingests.store import IngestStore
from imgfs.content.store import ContentStore
from imgfs.content.unproven import AHEAD_BYTES, unproven_path
from imgfs.errors import VerificationFailed
from imgfs.kernel.mounts import unmount
from imgfs.oci.digest import Digest
from tests.content.full_disk import fill, small_disk
from tests.support.programs import run

DATA = os.urandom(2 << 20)


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A filesystem whose image file is larger than the disk that holds it; and that disk."""
    with small_disk(tmp_path / "under", 6 << 20) as under:
        picture, at = under / "picture", tmp_path / "disk"
        with picture.open("wb") as file:
            file.truncate(64 << 20)
        run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", picture)
        at.mkdir()
        run("mount", "-o", "loop,errors=continue", picture, at)
        try:
            yield at, under
        finally:
            unmount(str(at))


async def test_bytes_that_the_disk_lost_while_the_daemon_was_killed_are_not_committed(thin: tuple[Path, Path]) -> None:
    at, under = thin
    async with trio.open_nursery() as killed:
        ingests = IngestStore(ContentStore(at), killed, era="one")
        run("sync", "-f", at)  # otherwise the names would fail too
        writer = await ingests.open("r")
        await writer.write(DATA)
        filler = fill(under)
        fail_to_sync(ingests.status("r").path)
        filler.unlink()
        killed.cancel_scope.cancel()
        await writer.close()
    async with trio.open_nursery() as nursery:
        content = ContentStore(at)
        ingests = IngestStore(content, nursery, era="one")
        assert ingests.status("r").offset == len(DATA)
        with pytest.raises(VerificationFailed, match="not stored"):
            await ingests.commit("r", Digest.of(DATA))
        async with await ingests.open("r") as writer:
            await writer.write_at(0, DATA)
        await ingests.commit("r", Digest.of(DATA))
        nursery.cancel_scope.cancel()


async def test_bytes_with_a_provisional_name_are_not_trusted_either(thin: tuple[Path, Path]) -> None:
    at, under = thin
    little = DATA[:AHEAD_BYTES]
    path = unproven_path(ContentStore(at).path(Digest.of(little)))
    path.parent.mkdir()
    path.touch()
    run("sync", "-f", at)  # or names would fail too
    with path.open("r+b") as file:  # ext4 writes a file that replaces another one at once
        file.write(little)
    filler = fill(under)
    fail_to_sync(path)
    filler.unlink()
    assert path.read_bytes() == little, "the page cache still has what the disk has not"
    assert list(ContentStore(at)) == []
    assert not path.exists()


def fail_to_sync(path: Path) -> None:
    """Consume the error of a sync, as the sync of a daemon does that is killed at this moment."""
    file = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            os.fsync(file)
    finally:
        os.close(file)
