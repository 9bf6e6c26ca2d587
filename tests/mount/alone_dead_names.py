"""A name server that never answers.

test_dead_names.py runs this file in its own network and mount namespaces, because the test replaces resolv.conf.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgfs.kernel.mounts import mount_at
from tests.mount.scene import Scene, serving, small, until
from tests.support.exposition import parse
from tests.support.isolation import settle
from tests.support.programs import run

LOOKUPS = 50
"""Number of lookups: more than the 40 shared threads. All names differ, so no lookup waits for another."""
FAST = 3
"""Deadline in seconds. The resolver needs at least 10 seconds to give up."""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[None]:
    """Run the only name server of the machine. It receives queries and never answers."""
    settle([])
    hosts, conf = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 localhost\n")
    conf.write_text("nameserver 127.0.0.53\noptions timeout:10 attempts:1\n")
    run("mount", "--bind", str(hosts), "/etc/hosts")
    run("mount", "--bind", str(conf), "/etc/resolv.conf")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.53", 53))
        yield


def test_silent_name_server_does_not_delay_other_requests(silent: None, tmp_path: Path) -> None:
    with serving(tmp_path) as scene, ThreadPoolExecutor(LOOKUPS) as pool:
        here = scene.serve(small("here"), "here")
        os.stat(here)
        readers = [
            pool.submit(os.path.exists, scene.images / f"dead-{number}.example/app:1") for number in range(LOOKUPS)
        ]
        until(lambda: waiting(scene) >= LOOKUPS)
        began = time.monotonic()
        # Fetch, merge and kernel mount use all kinds of threads. None of them may wait for the name server.
        assert (here / "rootfs/mark").read_text() == "here/0\n"
        assert os.listdir(f"{scene.serve(small('new'), 'new')}/rootfs/")
        assert time.monotonic() - began < FAST
        assert not [one for one in readers if one.done()], "a reader did not wait for the name server"
        pid = scene.mount.pid()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        until(lambda: mount_at(str(scene.mount.path)) is None)
        assert time.monotonic() - began < 2 * FAST


def waiting(scene: Scene) -> int:
    """Return the number of waiting requests, without the request that reads the metrics."""
    return int(parse((scene.mount.path / ".imgfs/metrics").read_text())["imgfs_waiting"].value()) - 1
