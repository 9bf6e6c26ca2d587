"""A quota limits writers in content/ingest: excess bytes are ENOSPC before they are stored, and space can be freed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.images import File, image, layer
from tests.archives.memory import layout_members, tar
from tests.mount.ingesting import blob_of, commit, declare, put, size, writing
from tests.mount.scene import CONFIG
from tests.support.mounted import Mounted

MIB = 1 << 20
QUOTA = 4 * MIB


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Mounted(tmp_path_factory.mktemp("quota"), CONFIG + f"quota_bytes = {QUOTA}\n") as mount:
        mount.start()
        yield mount


@pytest.fixture
def at(mount: Mounted) -> Path:
    return mount.content / "ingest/new"


def used(mount: Mounted) -> int:
    files = (path for top in ("blobs", "ingest") for path in (mount.state / top).rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)


def write_all(file: int, data: bytes) -> None:
    for start in range(0, len(data), 100_000):
        os.write(file, data[start : start + 100_000])


def test_a_writer_beyond_the_quota_stops_and_continues_after_space_is_freed(mount: Mounted, at: Path) -> None:
    stored = blob_of(at, os.urandom(3 * MIB))
    data = os.urandom(3 * MIB)
    with writing(at) as file:
        with pytest.raises(OSError) as raised:
            write_all(file, data)
        assert raised.value.errno == errno.ENOSPC
        assert "quota_bytes" in os.getxattr(at, "user.imgfs.error").decode()
        assert 0 < size(file) < MIB
        assert used(mount) <= QUOTA
        stored.unlink()
        os.write(file, data[size(file) :])
    commit(at, data).unlink()


def test_a_declared_total_beyond_the_quota_is_refused(at: Path) -> None:
    put(at, b"begun")
    with pytest.raises(OSError) as raised:
        declare(at, total=QUOTA + 6)
    assert raised.value.errno == errno.ENOSPC
    declare(at, total=QUOTA // 2)
    at.unlink()


def test_an_import_beyond_the_quota_keeps_stored_content(mount: Mounted, at: Path, tmp_path: Path) -> None:
    mine = blob_of(at, os.urandom(MIB))
    archive = tmp_path / "big.tar"
    archive.write_bytes(tar(layout_members(image([layer([File("f", os.urandom(5 * MIB))])]), "big").items()))
    done = mount.run("import", str(archive))
    assert done.returncode != 0
    assert "quota_bytes" in done.stderr
    assert Digest.of(mine.read_bytes()) == mine.name
    mine.unlink()
