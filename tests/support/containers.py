"""Records without containers: written as a supervisor would write them, with locks held by other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from imgfs.execution.records.record import Container, ContainerRecord, ContainerStatus, InstalledRuntime, encode, now
from imgfs.execution.records.records import ContainerRecords

CHAIN = f"sha256:{'c' * 64}"
_HOLD = """\
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


def fabricated(records: ContainerRecords, id: str, status: ContainerStatus, **changes: object) -> ContainerRecord:
    """Write a complete record of a container that does not exist."""
    record = records.make()
    facts = {
        "id": id,
        "image": "registry.test/app:1",
        "digest": f"sha256:{'d' * 64}",
        "platform": "linux/amd64",
        "chain": CHAIN,
        "snapshot": id,
        "created": now(),
        "args": ["/bin/app", "an argument"],
        "tty": False,
        "detach": True,
        "remove": False,
        "runtime": InstalledRuntime("runc", "/usr/sbin/runc"),
        "stop_signal": "SIGTERM",
        "labels": {"some.label": "a value"},
        "mountpoint": "/mnt",
    }
    record.write_container(Container(**(facts | changes)))  # pyright: ignore[reportArgumentType]
    record.bundle.mkdir()
    record.config.write_text(json.dumps({"ociVersion": "1.0.2", "process": {"args": ["/bin/app"], "cwd": "/"}}))
    record.lock.touch(0o600)
    record.write_status(status)
    return records.publish(record, id)


def many(records: ContainerRecords, count: int) -> None:
    """Write this many records of stopped containers. Faster than `fabricated`, because nothing is synced."""
    template = fabricated(records, "template", stopped(0))
    container, status = template.container(), template.written_status()
    for number in range(count - 1):
        id = f"many-{number}"
        path = records.directory / id
        path.mkdir()
        facts = {"id": id, "snapshot": id}
        for name, value in (("container.json", container), ("status.json", status)):
            text = json.loads(encode(value))
            (path / name).write_text(json.dumps(text | facts if name == "container.json" else text))


def stopped(exit_code: int | None, **more: object) -> ContainerStatus:
    """Return a status of an ended container."""
    facts = {"status": "stopped", "exit_code": exit_code, "started": now(), "finished": now()}
    return ContainerStatus(**(facts | more))  # pyright: ignore[reportArgumentType]


@contextmanager
def supervised(record: ContainerRecord) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that holds the lock of a record until the block ends."""
    words = [sys.executable, "-c", _HOLD, os.fspath(record.lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()
