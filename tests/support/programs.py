"""Runs other programs: finds them, waits until they serve, and ends them by PID.

A missing program fails the test with the name of its Debian package. Nothing is skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PACKAGES = {"ctr": "containerd", "nginx": "nginx-light"}
READY_WITHIN = 30.0
"""Seconds after which a server that does not serve fails the test."""
_POLL = 0.01
_END_WITHIN = 10.0


def program(name: str) -> str:
    """Return the path of `name`. Fails with the package to install."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    assert found, f"{name}: not found; apt-get install {_PACKAGES.get(name, name)}"
    return found


def run(name: str, *arguments: str | bytes | Path, env: Mapping[str, str] | None = None) -> bytes:
    """Run a program to its end and return its output. Fails with its error output."""
    done = subprocess.run([program(name), *arguments], capture_output=True, check=False, env=_environment(env))
    complaint = (done.stderr + done.stdout).decode(errors="replace")[-2000:]
    assert done.returncode == 0, f"{name} {arguments}: exit status {done.returncode}: {complaint}"
    return done.stdout


def start(
    name: str, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server whose output is appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [program(name), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(env)
        )


def wait_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    """Poll `ready` until it is true. Fails with the end of `log` if the process exits or READY_WITHIN passes."""
    deadline = time.monotonic() + READY_WITHIN
    while not ready():
        ended = process.poll()
        told = log.read_text(errors="replace")[-2000:]
        assert ended is None, f"{process.args}: ended with {ended} before it served: {told}"
        assert time.monotonic() < deadline, f"{process.args}: does not serve after {READY_WITHIN} s: {told}"
        time.sleep(_POLL)


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process, kill it if it does not exit, and wait."""
    process.terminate()
    try:
        process.wait(_END_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def accepts(port: int) -> bool:
    """Return whether a process accepts connections at the loopback port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}
