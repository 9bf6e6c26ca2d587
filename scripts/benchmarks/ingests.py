"""P9: bytes into the content store through the mount, and out of it again, against a file of the same disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from .bench import Bench, recorded, say, timed
from .contestants import Imgfs
from .processes import run
from .reading import Reader
from .results import Row, Unit

CONTENT = "P9"
INGEST, READ_WARM = "ingest of 512 MB, to the commit", "warm read of the blob"
COMMIT = "commit of 4 kB, on the machine's own disk"
MEMORY = "highest RSS, ingest and read"
COPIED, SYNCED = "cp and sha256sum", "write and fsync"
SMALL, LARGE = "8 MB", "1 GB"
_MEGABYTE = 1_000_000
_LARGE = 512 * _MEGABYTE
_COMMITS = 20
"""Of each repeat."""


def throughput(bench: Bench) -> None:
    """`cp` and `mv` into content/, against `cp` into the rooms' disk, unsynced, and sha256sum of the copy."""
    say(f"{CONTENT} {INGEST}")
    with bench.rooms.room() as room:
        source, digest = _incompressible(room / "source", _LARGE)
        for _ in range(bench.repeats):
            _through_the_disk(bench, source)
            _through_the_mount(bench, source, digest)


def _rows(bench: Bench, name: str) -> tuple[Row, Row]:
    into, out = (bench.results.row(CONTENT, case, name, Unit.MEGABYTES_PER_SECOND) for case in (INGEST, READ_WARM))
    return into, out


def _through_the_disk(bench: Bench, source: Path) -> None:
    into, out = _rows(bench, COPIED)
    with recorded(into, out), bench.rooms.room() as room:
        into.samples.append(_rate(lambda: _copy(source, room / "copy")))
        out.samples.append(Reader(bench.work).measure(room, "sequential", "copy").rate / _MEGABYTE)


def _through_the_mount(bench: Bench, source: Path, digest: str) -> None:
    into, out = _rows(bench, Imgfs.name)
    with recorded(into, out), bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        content = mount.mountpoint / "content"
        into.samples.append(_rate(lambda: _ingest(source, content, digest)))
        out.samples.append(Reader(bench.work).measure(content, "sequential", digest).rate / _MEGABYTE)


def commits(bench: Bench) -> None:
    """One `rename` into content/ of what was written before, against what an fsync of such a file costs there."""
    say(f"{CONTENT} {COMMIT}")
    committed = bench.results.row(CONTENT, COMMIT, Imgfs.name, Unit.MICROSECONDS)
    synced = bench.results.row(CONTENT, COMMIT, SYNCED, Unit.MICROSECONDS)
    with recorded(committed, synced), bench.disk.room() as room, Imgfs(room, bench) as mount:
        for number in range(bench.repeats * _COMMITS):
            data = hashlib.sha256(b"%d" % number).digest() * 128
            synced.samples.append(_synced(room / "synced", data) * 1e6)
            committed.samples.append(_committed(mount.mountpoint / "content", data) * 1e6)


def memory(bench: Bench) -> None:
    """The daemon's memory does not follow the size of a blob."""
    say(f"{CONTENT} {MEMORY}")
    for name, megabytes in ((SMALL, 8), (LARGE, 1000)):
        row = bench.results.row(CONTENT, MEMORY, name, Unit.MEGABYTES)
        with recorded(row), bench.entered(Imgfs) as mount:
            assert isinstance(mount, Imgfs)
            source, digest = _incompressible(mount.room / "source", megabytes * _MEGABYTE)
            _ingest(source, mount.mountpoint / "content", digest)
            run("cat", mount.mountpoint / "content" / digest)
            row.samples.append(mount.memory_bytes("VmHWM") / 1e6)


def _incompressible(path: Path, size: int) -> tuple[Path, str]:
    """A file of that size, in the page cache, and the name it has as a blob."""
    hashed = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // _MEGABYTE):
            piece = os.urandom(_MEGABYTE)
            hashed.update(piece)
            file.write(piece)
    return path, f"sha256:{hashed.hexdigest()}"


def _rate(action: Callable[[], object]) -> float:
    seconds, _ = timed(action)
    return _LARGE / _MEGABYTE / seconds


def _copy(source: Path, target: Path) -> None:
    run("cp", source, target)
    run("sha256sum", target)


def _ingest(source: Path, content: Path, digest: str) -> None:
    run("cp", source, content / "ingest/bench")
    run("mv", content / "ingest/bench", content / digest)


def _synced(path: Path, data: bytes) -> float:
    """Seconds of the fsync of a new file."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        seconds, _ = timed(lambda: os.fsync(file.fileno()))
    path.unlink()
    return seconds


def _committed(content: Path, data: bytes) -> float:
    """Seconds of the commit of a written ingest."""
    ingest = content / "ingest/bench"
    ingest.write_bytes(data)
    target = content / f"sha256:{hashlib.sha256(data).hexdigest()}"
    seconds, _ = timed(lambda: ingest.rename(target))
    return seconds
