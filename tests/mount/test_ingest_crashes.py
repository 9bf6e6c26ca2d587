"""Unfinished writes after remounts, kill -9 at any system call, and failing or full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.content.ingests.refs import ref_id
from imgfs.oci.digest import Digest
from tests.mount.preparing import small_disk
from tests.mount.scene import Scene, assert_verified, error_of, refused, run, serving, succeed
from tests.mount.test_snapshot_crashes import killed_at
from tests.mount.test_waiting import FREEDOM
from tests.support.mounted import PATIENCE, Mounted
from tests.support.programs import program

PIECE = 1 << 20
POINTS = [
    *(("fsync", number) for number in (1, 2, 3, 4)),
    *(("fdatasync", number) for number in (1, 2)),
    *(("mkdir", number) for number in (1,)),
    *(("rename", number) for number in (1, 2, 3)),
    *(("pwrite64", number) for number in (1, 2, 4)),
    *(("unlink", number) for number in (1, 2)),
    ("ftruncate", 1),
    ("rmdir", 1),
    ("link", 1),
]
"""System calls at which the daemon is killed, counted for each thread from the first operation."""


def noise(mark: str, size: int) -> bytes:
    return hashlib.shake_256(mark.encode()).digest(size)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("crashes")) as made:
        yield made


@pytest.fixture
def at(scene: Scene, request: pytest.FixtureRequest) -> Path:
    """Return a ref that no other test uses."""
    return ingest(scene) / request.node.name


def ingest(scene: Scene) -> Path:
    return scene.mount.content / "ingest"


def restart(scene: Scene, how: str) -> None:
    getattr(scene.mount, how)()
    scene.mount.start()


def write(path: Path, data: bytes, flags: int = os.O_APPEND) -> None:
    """Open, write all of it, close."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    finally:
        os.close(file)


def commit(path: Path, data: bytes) -> Path:
    blob = path.parent.parent / Digest.of(data)
    os.rename(path, blob)
    assert blob.read_bytes() == data
    return blob


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_goes_on_after(scene: Scene, at: Path, how: str) -> None:
    data = noise(at.name, 3 * PIECE)
    write(at, data[:PIECE])
    os.setxattr(at, "user.imgfs.total", str(len(data)).encode())
    os.setxattr(at, "user.imgfs.expected", Digest.of(data).encode())
    facts = {name: os.getxattr(at, name) for name in os.listxattr(at)}
    restart(scene, how)
    assert at.stat().st_size == PIECE
    write(at, data[PIECE : 2 * PIECE])
    restart(scene, how)
    write(at, data[2 * PIECE :])
    told = {name: os.getxattr(at, name) for name in os.listxattr(at)}
    for name in ("total", "expected", "started"):
        assert told[f"user.imgfs.{name}"] == facts[f"user.imgfs.{name}"]
    with refused(errno.EFBIG):
        write(at, b"x")
    commit(at, data)


def test_a_descriptor_of_a_dead_daemon_writes_nowhere_and_the_ref_is_free(scene: Scene, at: Path) -> None:
    with at.open("wb", buffering=0) as file:
        file.write(b"before ")
        scene.mount.kill()
        with refused(errno.ENOTCONN):
            file.write(b"lost")
        scene.mount.start()
    write(at, b"after")
    commit(at, b"before after")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_digest_waits_for_hashing_after_a_restart(scene: Scene, at: Path, how: str) -> None:
    data = noise(at.name, 2 * PIECE)
    write(at, data)
    restart(scene, how)
    assert "user.imgfs.digest" in os.listxattr(at)
    assert os.getxattr(at, "user.imgfs.digest") == Digest.of(data).encode()
    restart(scene, how)
    write(at, b"more")
    assert os.getxattr(at, "user.imgfs.digest") == Digest.of(data + b"more").encode()
    os.unlink(at)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_wait_for_a_digest(scene: Scene, at: Path, number: signal.Signals) -> None:
    write(at, b"begin")
    scene.mount.stop()
    # A sparse file of 1 TiB: hashing it takes far longer than this test. A clean stop made it durable.
    os.truncate(scene.mount.state / "ingest" / ref_id(at.name) / "data", 1 << 40)
    scene.mount.start()
    command = ["getfattr", "-n", "user.imgfs.digest", str(at)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(number)
        assert process.wait(FREEDOM) == -number
    os.unlink(at)


def test_odd_refs_survive(scene: Scene) -> None:
    names = ["n" * 255, "a%2Fb", "%2f", "ü", "\udcff", ".hidden", "a b", "50%"]
    for name in names:
        write(ingest(scene) / name, os.fsencode(name))
    restart(scene, "kill")
    assert set(names) <= set(os.listdir(ingest(scene)))
    for name in names:
        commit(ingest(scene) / name, os.fsencode(name))


def test_what_was_renamed_and_aborted_is_so_after_a_kill(scene: Scene, at: Path) -> None:
    names = [at.with_name(f"{at.name}-{number}") for number in range(4)]
    for number, path in enumerate(names):
        write(path, b"%d" % number)
    os.rename(names[0], at)
    os.rename(names[1], names[2])
    os.unlink(names[3])
    restart(scene, "kill")
    left = {path.name for path in names if path.exists()}
    assert (at.exists(), left) == (True, {names[2].name})
    with refused(errno.EBADMSG):
        commit(names[2], b"2")
    commit(names[2], b"1")
    commit(at, b"0")


def test_a_committed_blob_and_its_labels_survive(scene: Scene, at: Path) -> None:
    write(at, b"labelled")
    blob = commit(at, b"labelled")
    labels = {
        "user.label.a": b"1",
        "user.label.containerd.io/gc.ref.content.0": Digest.of(b"x").encode(),
        "user.label.bytes": b"\xff\0\n",
        "user.label.empty": b"",
    }
    for name, value in labels.items():
        os.setxattr(blob, name, value)
    os.setxattr(blob, "user.label.a", b"2")
    os.setxattr(blob, "user.label.gone", b"1")
    os.removexattr(blob, "user.label.gone")
    restart(scene, "kill")
    assert blob.read_bytes() == b"labelled"
    told = {name: os.getxattr(blob, name) for name in os.listxattr(blob) if name.startswith("user.label.")}
    assert told == labels | {"user.label.a": b"2"}
    os.unlink(blob)
    write(at, b"labelled")
    assert not [name for name in os.listxattr(commit(at, b"labelled")) if name.startswith("user.label.")]


@pytest.mark.parametrize("key", ["", "a\nb", "a\x7f", "\udcff"])
def test_a_malformed_key_of_a_label_is_invalid(scene: Scene, at: Path, key: str) -> None:
    data = noise(at.name, 100)
    write(at, data)
    blob = commit(at, data)
    with refused(errno.EINVAL):
        os.setxattr(blob, f"user.label.{key}", b"1")
    assert "label key" in error_of(blob)
    assert "label key" in (scene.mount.path / ".imgfs/log").read_text()
    with refused(errno.ENODATA):
        os.removexattr(blob, "user.label.nothing")
    os.setxattr(blob, "user.label.good", b"1")
    assert error_of(blob) == ""


def test_a_label_over_the_limit_is_invalid(scene: Scene, at: Path) -> None:
    write(at, b"long label")
    blob = commit(at, b"long label")
    os.setxattr(blob, "user.label.long", bytes(4096 - 4))
    with refused(errno.EINVAL):
        os.setxattr(blob, "user.label.long", bytes(4096 - 3))
    assert "4096" in error_of(blob)
    os.setxattr(blob, f"user.label.{'k' * 244}", b"1")
    assert len(os.getxattr(blob, "user.label.long")) == 4092


class Life:
    """The steps of one ref. The ref must always hold a prefix of `written`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = noise(path.name, 3 * PIECE)
        self.blob = path.parent.parent / Digest.of(self.data)
        self.done = 0

    @property
    def steps(self) -> list[Callable[[], object]]:
        """Return the steps; the last one is the commit."""
        data = self.data
        return [
            lambda: write(self.path, b"wrong", os.O_TRUNC),
            lambda: write(self.path, data[:PIECE], os.O_TRUNC),
            lambda: os.setxattr(self.path, "user.imgfs.total", str(len(data)).encode()),
            lambda: self._synced(data[PIECE : 2 * PIECE]),
            lambda: os.rename(self.path, self.path.with_name(f"{self.path.name}-2")),
            lambda: os.rename(self.path.with_name(f"{self.path.name}-2"), self.path),
            lambda: write(self.path, data[2 * PIECE :]),
            lambda: os.rename(self.path, self.blob),
        ]

    def live(self) -> None:
        """Run steps until one fails."""
        for step in self.steps:
            try:
                step()
            except OSError:
                return
            self.done += 1

    def finish(self) -> None:
        """Assert that the remaining bytes are correct, and complete the blob."""
        second = self.path.with_name(f"{self.path.name}-2")
        assert not (self.path.exists() and second.exists())
        if second.exists():
            os.rename(second, self.path)
        if self.done == len(self.steps):
            assert self.blob.exists()
        if not self.blob.exists():
            self._go_on()
            os.rename(self.path, self.blob)
        assert self.blob.read_bytes() == self.data
        with_size = self.path.exists() and self.path.stat().st_size
        assert with_size is False

    def _go_on(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        assert size >= {0: 0, 1: 0, 2: PIECE, 3: PIECE}.get(self.done, 2 * PIECE if self.done < 7 else 3 * PIECE)
        if size < 6:
            write(self.path, self.data, os.O_TRUNC)
        else:
            write(self.path, self.data[size:])

    def _synced(self, piece: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(piece)
            os.fsync(file)


@pytest.mark.parametrize(("call", "number"), POINTS)
def test_wherever_a_kill_strikes(scene: Scene, call: str, number: int) -> None:
    life = Life(ingest(scene) / f"{call}-{number}")
    with killed_at(scene.mount, call, number):
        life.live()
    scene.mount.start()
    life.finish()
    assert_verified(scene.mount.state)
    assert len(list((scene.mount.state / "ingest").iterdir())) == len(os.listdir(ingest(scene)))


def test_a_failed_fsync_is_told_and_the_writer_goes_on_from_the_last_good_one(scene: Scene, at: Path) -> None:
    data = noise(at.name, 3 * PIECE)
    with at.open("ab", buffering=0) as file:
        file.write(data[:PIECE])
        os.fsync(file)
        file.write(data[PIECE : 2 * PIECE])
        with failing(scene.mount, "fsync", "EIO"):
            with refused(errno.EIO):
                os.fsync(file)
            assert f"continue at byte {PIECE}" in error_of(at)
        assert at.stat().st_size == PIECE
        with refused(errno.EIO):
            os.fsync(file)
        file.write(data[PIECE:])
        os.fsync(file)
    assert error_of(at) == ""
    commit(at, data)


@contextmanager
def failing(mounted: Mounted, call: str, error: str) -> Generator[None]:
    """Make every system call `call` of the daemon fail in this context."""
    command = [program("strace"), "-f", "-p", str(mounted.pid()), "-o", os.devnull, "-e", f"trace={call}"]
    with subprocess.Popen([*command, "-e", f"inject={call}:error={error}"], stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        try:
            yield
        finally:
            tracer.terminate()
            tracer.communicate(timeout=PATIENCE)


def test_labels_are_for_the_owner_of_the_content() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="imgfs-labels-") as public,
        Mounted(Path(public), 'access = "all"\n') as mount,
    ):
        Path(public).chmod(0o755)
        mount.start()
        write(mount.content / "ingest/ref", b"of root")
        blob = commit(mount.content / "ingest/ref", b"of root")
        for key in ("user.label.containerd.io/gc.root", "user.label.a"):
            os.setxattr(blob, key, b"1")
            script = f"import os; os.setxattr({str(blob)!r}, {key!r}, b'2')"
            done = run("setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script)
            assert "Permission denied" in done.stderr
            assert os.getxattr(blob, key) == b"1"
        script = f"open({str(mount.content / 'ingest/other')!r}, 'w')"
        assert (
            "Permission denied"
            in run("setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script).stderr
        )


def test_a_full_disk_takes_what_fits_and_goes_on_later(tmp_path: Path) -> None:
    with small_disk(tmp_path, 24 << 20) as disk, Mounted(tmp_path) as mount:
        mount.state = disk / "state"
        mount.start()
        path = mount.content / "ingest/full"
        data = noise("full", 12 * PIECE)
        filler = disk / "filler"
        free = os.statvfs(disk)
        filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 6 * PIECE)))
        with path.open("wb", buffering=0) as file:
            written = fill(file.fileno(), data)
            assert 0 < written < len(data)
            assert path.stat().st_size == written
            with refused(errno.ENOSPC):
                file.write(data[written : written + PIECE])
            assert "full" in error_of(path) or "room" in error_of(path)
            assert path.stat().st_size == written
            filler.unlink()
            while written < len(data):
                written += file.write(data[written : written + PIECE]) or 0
            os.fsync(file)
        assert error_of(path) == ""
        commit(path, data)
        mount.kill()
        mount.start()
        assert (mount.content / Digest.of(data)).read_bytes() == data


def fill(file: int, data: bytes) -> int:
    """Write until the disk is full; return the number of bytes written."""
    written = 0
    with refused(errno.ENOSPC):
        while True:
            written += os.write(file, data[written : written + PIECE] or b"x")
    return written


def test_on_a_full_disk_ingests_are_aborted_and_listed(tmp_path: Path) -> None:
    with small_disk(tmp_path, 24 << 20) as disk, Mounted(tmp_path) as mount:
        mount.state = disk / "state"
        mount.start()
        paths = [mount.content / "ingest" / name for name in "ab"]
        for path in paths:
            write(path, noise(path.name, 2 * PIECE))
        with (disk / "filler").open("wb", buffering=0) as file:
            fill(file.fileno(), bytes(32 * PIECE))
        with refused(errno.ENOSPC):
            write(paths[0], bytes(PIECE))
        size = paths[0].stat().st_size
        mount.kill()
        mount.start()
        assert paths[0].stat().st_size == size
        succeed("rm", paths[0])
        write(paths[1], b"there is room again")
        commit(paths[1], noise("b", 2 * PIECE) + b"there is room again")
