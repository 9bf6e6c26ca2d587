"""A real daemon with a real mount, started as a user starts it, and removed after every test."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from imgfs.kernel.mounts import mount_at, unmount

IMGFS = [sys.executable, "-m", "imgfs"]
PATIENCE = 30


class Mounted:
    """`directory`/mnt mounted from `directory`/state. Paths are built by `image`, `content` and `snapshots`."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.path = directory / "mnt"
        self.state = directory / "state"
        if config:
            self.state.mkdir(mode=0o700)
            (self.state / "imgfs.toml").write_text(config)

    def __enter__(self) -> Mounted:
        return self

    def __exit__(self, *_: object) -> None:
        """End the daemon if it runs, and unmount."""
        pid = self.pid() if mount_at(str(self.path)) else None
        if pid is not None:
            _kill(pid)
        while mount_at(str(self.path)):
            unmount(str(self.path), detach=True)

    def start(self) -> None:
        """Mount. The tree can be used on return."""
        done = self.try_start()
        assert done.returncode == 0, done.stderr

    def try_start(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Try to mount and return the result."""
        return self.run("mount", str(self.path), "--state", str(self.state), *options)

    def stop(self) -> None:
        """Unmount. The daemon has ended on return."""
        done = self.run("umount", str(self.path))
        assert done.returncode == 0, done.stderr

    def kill(self) -> None:
        """Kill the daemon with SIGKILL. The dead mount remains."""
        pid = self.pid()
        assert pid is not None
        _kill(pid)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the imgfs command against this mount."""
        environment = os.environ | {"IMGFS_MOUNTPOINT": str(self.path)}
        return subprocess.run(
            [*IMGFS, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment
        )

    def pid(self) -> int | None:
        """Return the daemon's PID; None if it does not answer."""
        try:
            return int(json.loads((self.path / ".imgfs/state.json").read_bytes())["pid"])
        except OSError:
            return None

    def image(self, reference: str) -> Path:
        """images/<reference>."""
        return self.path / "images" / reference

    def rootfs(self, reference: str) -> Path:
        """The rootfs behind a name."""
        return self.image(reference) / "rootfs"

    @property
    def content(self) -> Path:
        """content/."""
        return self.path / "content"

    @property
    def snapshots(self) -> Path:
        """snapshots/."""
        return self.path / "snapshots"

    def log(self) -> str:
        """The daemon's log."""
        return (self.state / "log").read_text()


def _kill(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], PATIENCE)
    finally:
        os.close(process)
