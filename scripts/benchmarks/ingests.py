"""P9: writing into the content store through the mount, and reading it, compared with a file on the same disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from .bench import Bench, recorded, say, timed
from .contestants import Imgfs
from .processes import run
from .reading import Reader
from .results import Row, Unit
from .slow_disks import SlowDisk, slow_disk

CONTENT = "P9"
INGEST, READ_WARM = "ingest of 512 MB, to the commit", "warm read of the blob"
COMMIT = "commit of 4 kB, on the machine's own disk"
MEMORY = "highest RSS, ingest and read"
COPIED, SYNCED = "cp and sha256sum", "write and fsync"
RENAMED = "and rename, fsync of the directory"
FLUSHES = {2: "a common SSD", 8: "a hard disk"}
"""Milliseconds of a flush, and the kind of disk that needs them."""
SMALL, LARGE = "8 MB", "1 GB"
_MEGABYTE = 1_000_000
_LARGE = 512 * _MEGABYTE
_COMMITS = 20
"""Commits in each repeat."""
_WRITERS, _EACH = 32, 10


def commit_when(flush: int) -> str:
    """Name the case of one commit on a disk whose flush takes this many milliseconds."""
    return f"commit of 4 kB, flush of {flush} ms ({FLUSHES[flush]})"


def commits_when(flush: int) -> str:
    """Name the case of many writers on such a disk, from the first byte to the commit."""
    return f"{_WRITERS} writers of 4 kB, flush of {flush} ms"


def throughput(bench: Bench) -> None:
    """`cp` and `mv` into content/, against `cp` to the rooms' disk, unsynced, and sha256sum of the copy."""
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
    """One `rename` of written data into content/, against an fsync of the same data on the same disk."""
    say(f"{CONTENT} {COMMIT}")
    committed = bench.results.row(CONTENT, COMMIT, Imgfs.name, Unit.MICROSECONDS)
    synced = bench.results.row(CONTENT, COMMIT, SYNCED, Unit.MICROSECONDS)
    with recorded(committed, synced), bench.disk.room() as room, Imgfs(room, bench) as mount:
        for number in range(bench.repeats * _COMMITS):
            data = _small(number)
            synced.samples.append(_synced(room / "synced", data) * 1e6)
            committed.samples.append(_committed(mount.mountpoint / "content", data) * 1e6)


def slow_commits(bench: Bench) -> None:
    """Commits by one and by many writers where a flush is as slow as on real disks, against careful programs."""
    for flush in FLUSHES:
        with slow_disk(flush) as disk:
            _one_by_one(bench, disk, commit_when(flush))
            _many_at_once(bench, disk, commits_when(flush))


def _slow_rows(bench: Bench, case: str, unit: Unit) -> tuple[tuple[Row, Row], ...]:
    """Return the rows of imgfs, an fsync and a durable rename: commits, and disk flushes for one commit."""
    row = partial(bench.results.row, CONTENT)
    return tuple(
        (row(case, name, unit), row(f"{case}, each", name, Unit.FLUSHES)) for name in (Imgfs.name, SYNCED, RENAMED)
    )


def _one_by_one(bench: Bench, disk: SlowDisk, case: str) -> None:
    say(f"{CONTENT} {case}")
    committed, synced, renamed = _slow_rows(bench, case, Unit.MICROSECONDS)
    with recorded(*committed, *synced, *renamed), disk.rooms.room() as room, Imgfs(room, bench) as mount:
        for number in range(bench.repeats * _COMMITS):
            data = _small(number)
            for rows, write in (
                (synced, lambda data: _synced(room / "synced", data)),
                (renamed, lambda data: _renamed(room / "renamed", data)),
                (committed, lambda data: _committed(mount.mountpoint / "content", data)),
            ):
                before = disk.flushes()
                rows[0].samples.append(write(data) * 1e6)
                rows[1].samples.append(disk.flushes() - before)


def _many_at_once(bench: Bench, disk: SlowDisk, case: str) -> None:
    say(f"{CONTENT} {case}")
    committed, synced, renamed = _slow_rows(bench, case, Unit.PER_SECOND)
    committed[0].note = "the kernel gives way to one rename between directories of a filesystem at a time"
    with recorded(*committed, *synced, *renamed), disk.rooms.room() as room, Imgfs(room, bench) as mount:
        content = mount.mountpoint / "content"
        for number in range(bench.repeats):
            for rows, write in (
                (synced, lambda writer, data: _synced(room / f"s{writer}", data)),
                (renamed, lambda writer, data: _renamed(room / f"r{writer}", data)),
                (committed, lambda writer, data: _committed(content, data, f"w{writer}")),
            ):
                before = disk.flushes()
                rows[0].samples.append(_together(number, write))
                rows[1].samples.append((disk.flushes() - before) / (_WRITERS * _EACH))


def _together(number: int, write: Callable[[int, bytes], object]) -> float:
    """Return how many writes a second this many threads complete. Each thread writes one file after another."""

    def work(writer: int) -> None:
        for at in range(_EACH):
            write(writer, _small((number * _WRITERS + writer) * _EACH + at))

    with ThreadPoolExecutor(_WRITERS) as threads:
        seconds, _ = timed(lambda: list(threads.map(work, range(_WRITERS))))
    return _WRITERS * _EACH / seconds


def memory(bench: Bench) -> None:
    """Show that the daemon's memory does not grow with the size of a blob."""
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
    """Make a file of this size in the page cache, and return it with its blob name."""
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
    """Return the seconds of the fsync of a new file."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        seconds, _ = timed(lambda: os.fsync(file.fileno()))
    path.unlink()
    return seconds


def _renamed(path: Path, data: bytes) -> float:
    """Return the seconds to make a new file and its name durable, bytes before name."""
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        seconds, _ = timed(lambda: _publish(file.fileno(), temporary, path))
    path.unlink()
    return seconds


def _publish(file: int, temporary: Path, path: Path) -> None:
    os.fsync(file)
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _committed(content: Path, data: bytes, ref: str = "bench") -> float:
    """Return the seconds of the commit of a written ingest."""
    ingest = content / "ingest" / ref
    ingest.write_bytes(data)
    target = content / f"sha256:{hashlib.sha256(data).hexdigest()}"
    seconds, _ = timed(lambda: ingest.rename(target))
    return seconds


def _small(number: int) -> bytes:
    """Return 4 kB that differ for each number."""
    return hashlib.sha256(b"%d" % number).digest() * 128
