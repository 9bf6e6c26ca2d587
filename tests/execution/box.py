"""A mount with images to run. Tests start containers by command or library, and prove that none stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from imgfs.cli.containers.site import site_of
from imgfs.cli.tree import Tree
from imgfs.errors import NotFound
from imgfs.execution.bundle.overrides import Overrides
from imgfs.execution.control import Connection, Json
from imgfs.execution.records.record import ContainerRecord, ContainerStatus
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.removal import discard_runtime
from imgfs.execution.start import CallerStreams, PulledImage, Site, StartedContainer, StartOptions, start_new
from imgfs.testing.build import Image
from imgfs.testing.images import ARM64, busybox_image, image
from tests.support.mounted import IMGFS, Mounted

T = TypeVar("T")
PATIENCE = 30.0
POLL = 0.02
FAKE = Path(__file__).with_name("fake_runtime.py")
IMAGES: Mapping[str, Mapping[str, Any]] = {
    "box": {"Cmd": ["sh"], "Env": ["PATH=/bin", "FROM=image"]},
    "service": {
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["echo served; id -u; pwd"],
        "User": "nobody",
        "WorkingDir": "/srv/made",
        "StopSignal": "SIGUSR1",
        "Labels": {"org.example.kind": "test"},
    },
    "silent": {},
    "stranger": {"Cmd": ["sh"], "User": "stranger"},
    "lost": {"Cmd": ["sh"], "WorkingDir": "/etc/passwd/x"},
    "up": {"Cmd": ["pwd"], "WorkingDir": "/../../../up"},
    "nul": {"Cmd": ["a\0b"]},
}


class Box:
    """A mount with the images above."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.records = ContainerRecords(mount.state)

    @property
    def site(self) -> Site:
        """Where the library starts containers in this mount."""
        return site_of(Tree(str(self.mount.path)))

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run `imgfs run` until it exits."""
        return self.imgfs("run", *arguments, stdin=stdin)

    def imgfs(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run an imgfs command against this mount until it exits."""
        command = [*IMGFS, *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, check=False, timeout=PATIENCE, env=self.environment
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands against this mount."""
        return os.environ | {"IMGFS_MOUNTPOINT": str(self.mount.path)}

    def source(self, name: str) -> PulledImage:
        """Describe an image to the library."""
        image = self.mount.image(name)
        digest = os.readlink(image).rpartition("/")[2]
        return PulledImage(name, digest, (image / "pull").read_text().strip(), (image / "config.json").read_bytes())

    def start(self, image: str = "box", *words: str, wish: Overrides | None = None, **manner: Any) -> StartedContainer:
        """Start a container in the background, by the library."""
        chosen = wish or Overrides(arguments=words)
        return start_new(self.site, self.source(image), chosen, StartOptions(detach=True, **manner), CallerStreams())

    def record(self, id: str) -> ContainerRecord:
        """Return the record of a container."""
        return self.records.get(id)

    def rootfs(self, id: str) -> Path:
        """Return the rootfs of a container, in the tree."""
        return self.mount.snapshots / "active" / self.record(id).container().snapshot / "rootfs"

    def ended(self, started: StartedContainer) -> ContainerStatus:
        """Wait until a container and its supervisor have ended."""
        with started.control:
            with suppress(OSError):  # the supervisor may have ended already; the final status is in the record
                started.control.send({"do": "wait"})
            told = started.control.answer()
        assert started.supervisor.wait(PATIENCE) == 0
        return msgspec.convert(told["status"], ContainerStatus)

    def ask(self, id: str, message: Json) -> Json:
        """Send a request to a supervisor, as commands do."""
        with Connection.open(self.record(id).control) as control:
            return control.ask(message)

    def kill(self, id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal through the supervisor."""
        assert self.ask(id, {"do": "kill", "signal": int(number), "all": False}) == {"ok": True}

    def snapshots(self) -> list[str]:
        """Return the keys of active snapshots."""
        return sorted(os.listdir(self.mount.snapshots / "active"))

    def take_away(self) -> None:
        """Stop and delete all containers, in whatever state they are."""
        for path in self.records.directory.glob("[!.]*"):
            with suppress(NotFound):  # a daemon that has just started may delete the container itself
                _take_away(self.records, ContainerRecord(path))

    def assert_nothing_stays(self, *ids: str) -> None:
        """Assert that no record, snapshot, mount, process, cgroup or runtime state of these containers is left."""
        until(lambda: not self.snapshots())
        # A daemon that has just started may still be deleting.
        until(lambda: {path.name for path in self.records.directory.glob("*")} <= {".runtime"})
        assert {path.name for path in self.records.runtime_root.glob("*")} <= {"refused.json"}
        table = Path("/proc/self/mountinfo").read_text()
        assert f"{self.records.directory}/" not in table
        assert f"{self.mount.snapshots}/active/" not in table
        assert not [one for id in ids for one in Path("/sys/fs/cgroup").glob(f"*/imgfs-{id}-*")]
        until(lambda: not supervisors(self.mount.path))


def _take_away(records: ContainerRecords, record: ContainerRecord) -> None:
    discard_runtime(records, record, record.container())
    until(lambda: record.status().status == "stopped")
    until(lambda: not record.is_supervised())
    with suppress(FileNotFoundError):
        os.rmdir(f"{record.container().mountpoint}/containers/{record.id}")


def supervisors(mountpoint: Path) -> list[int]:
    """Return the pids of the container supervisors of a mount, ascending, however each was started."""
    forked = [pid for pid, name in _called("imgfs.forkserver.server", mountpoint) if name.startswith("imgfs:")]
    return sorted([*(pid for pid, _ in _called("imgfs.execution.supervisor", mountpoint)), *forked])


def fork_server_processes(mountpoint: Path) -> list[int]:
    """Return the pids of a mount's fork server, of its running commands and of its prepared child."""
    return [pid for pid, name in _called("imgfs.forkserver.server", mountpoint) if not name.startswith("imgfs:")]


def fork_server(mountpoint: Path) -> int | None:
    """Return the pid of the fork server itself, or None if there is no fork server."""
    found = fork_server_processes(mountpoint)
    return next((pid for pid in found if _parent(pid) not in found), None)


def prepared_child(mountpoint: Path) -> list[int]:
    """Return the pids of the fork server's prepared child and its supervisor; empty while the child is being made.

    Only correct while no command runs.
    """
    found = {pid: _parent(pid) for pid in fork_server_processes(mountpoint)}
    commands = [pid for pid, parent in found.items() if parent == fork_server(mountpoint)]
    return [pid for one in commands for pid, parent in found.items() if parent == one for pid in (one, pid)]


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return 0


def _called(module: str, mountpoint: Path) -> Iterator[tuple[int, str]]:
    """Return the pids and names of the processes that run a module for a mount."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if module.encode() in words and os.fsencode(mountpoint) in words:
                yield int(path.parent.name), path.with_name("comm").read_text()


def until(condition: Callable[[], T]) -> T:
    """Call `condition` repeatedly until it returns a true value, and return that value."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL)
    return found


def images() -> Iterator[tuple[str, Image]]:
    """Return the images above, and an image for another machine. All have the same layers."""
    layers = busybox_image().layers
    for name, process in IMAGES.items():
        yield name, image(layers, config={"config": process})
    yield "foreign", image(layers, platform=ARM64)


@contextmanager
def boxed(directory: Path, config: str = "") -> Generator[Box]:
    """Yield a mount with all images pulled; delete all containers that the test leaves."""
    layout = directory / "layout"
    layout.mkdir()
    for name, made in images():
        made.write_layout(layout, name)
    with Mounted(directory, config) as mount:
        mount.start()
        done = mount.run("import", str(layout))
        assert done.returncode == 0, done.stderr
        box = Box(mount)
        try:
            yield box
        finally:
            if not os.path.ismount(mount.path) or mount.pid() is None:
                mount.start()
            box.take_away()


def fake_runtime(directory: Path, **quirks: str) -> Path:
    """Return a copy of the fake runtime with its quirks beside it."""
    directory.mkdir(exist_ok=True)
    path = directory / "fake"
    path.write_text(FAKE.read_text())
    path.chmod(0o755)
    set_quirks(path, **quirks)
    return path


def set_quirks(runtime: Path, **quirks: str) -> None:
    """Set what the runtime's commands do from now on instead of their work."""
    runtime.with_name("quirks.json").write_text(json.dumps(quirks))


def calls(runtime: Path) -> list[str]:
    """Return the calls of the runtime: command and id."""
    path = runtime.with_name("calls")
    return path.read_text().splitlines() if path.exists() else []
