"""Snapshots on an unresponsive disk: a signal frees a waiting process, and no operation stays half done."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.snapshots.removal import SHORT
from tests.mount.preparing import Workshop, digest_of, kind, workshop
from tests.mount.scene import run, succeed, until
from tests.support.programs import program

FREEDOM = 2
"""Seconds after which a signalled process counts as stuck."""
_NEVER = 100_000_000
"""Delay of the disk in microseconds, longer than any test."""
NUMBERS = {"unlinkat": 263, "getdents64": 217, "syncfs": 306, "pread64": 17, "read": 0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("slow")) as made:
        yield made


class Held:
    """The daemon whose system calls of one kind are delayed."""

    def __init__(self, pid: int, call: str) -> None:
        self._pid = pid
        self._number = str(NUMBERS[call])

    def wait_for_call(self) -> None:
        """Wait until strace stops a thread of the daemon in the delayed call. /proc reports that call."""
        until(lambda: any(self._is_in(task) for task in Path(f"/proc/{self._pid}/task").iterdir()))

    def _is_in(self, task: Path) -> bool:
        return (task / "syscall").read_text().split()[0] == self._number


@contextmanager
def holding(shop: Workshop, call: str, path: Path | None, after: int = 0) -> Generator[Held]:
    """Delay the calls about `path`, or all calls, in the context, after the first `after` calls of each thread."""
    pid = shop.mount.pid()
    assert pid is not None
    about = ["-P", str(path)] if path is not None else []
    command = [program("strace"), "-f", "-qq", "-o", os.devnull, *about, "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:delay_enter={_NEVER}:when={after + 1}+", "-p", str(pid)]
    with subprocess.Popen(command) as tracer:
        try:
            tasks = Path(f"/proc/{pid}/task")
            traced = f"TracerPid:\t{tracer.pid}\n"
            until(lambda: all(traced in (task / "status").read_text() for task in tasks.iterdir()))
            yield Held(pid, call)
        finally:
            tracer.terminate()


@dataclass(frozen=True, slots=True)
class Wait:
    """A command that waits for the disk in `call`, on the path `below` the upper directory of the snapshot."""

    name: str
    command: Callable[[Path], list[str | Path]]
    call: str
    below: str = ""


WAITS = [
    Wait("usage", lambda key: ["getfattr", "-n", "user.imgfs.usage", key], "getdents64"),
    Wait("size of the layer", lambda key: ["stat", key / "layer.tar"], "getdents64"),
    Wait("export", lambda key: ["cat", key / "layer.tar"], "read", "file"),
    Wait("commit", lambda key: ["mv", "-T", key, key.parents[1] / "done"], "syncfs"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
@pytest.mark.parametrize("wait", WAITS, ids=lambda one: one.name)
def test_a_signal_frees_a_process_that_waits_for_the_disk(shop: Workshop, wait: Wait, number: signal.Signals) -> None:
    (shop.prepare("work", shop.base) / "file").write_bytes(b"1" * 5000)
    key, upper = shop.active("work"), upper_of(shop, "file")
    before = digest_of(key / "layer.tar")
    with holding(shop, wait.call, None if wait.call == "syncfs" else upper / wait.below) as held:
        words = [str(word) for word in wait.command(key)]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            held.wait_for_call()
            process.send_signal(number)
            assert process.wait(FREEDOM) == -number
        assert shop.scene.images.is_dir()
    assert kind(key) == "active"
    assert int(os.getxattr(key, "user.imgfs.usage")) > 5000
    assert until(lambda: digest_of(key / "layer.tar")) == before  # EBUSY until the disk has answered the commit
    until(lambda: run("mv", "-T", key, shop.at("done")).returncode == 0)
    assert (shop.at("done/rootfs") / "file").read_bytes() == b"1" * 5000
    succeed("rmdir", shop.at("done"))


def test_rmdir_of_a_large_snapshot_waits_for_its_first_files_only_and_delays_no_other_caller(shop: Workshop) -> None:
    rootfs = shop.prepare("large")
    for number in range(2 * SHORT + 100):
        (rootfs / str(number)).touch()
    with holding(shop, "unlinkat", None, after=SHORT) as held:
        succeed("rmdir", shop.active("large"))
        held.wait_for_call()
        shop.prepare("beside")
        succeed("rmdir", shop.active("beside"))
    until(lambda: not list((shop.mount.state / "snapshots").glob(".*")))


def upper_of(shop: Workshop, name: str) -> Path:
    """Return the upper directory, below the state directory, that has a file of this name."""
    [found] = (shop.mount.state / "snapshots").glob(f"*/upper/{name}")
    return found.parent
