"""A state directory with one object of each kind, and functions that damage one of its files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from imgfs.cli import main
from imgfs.disk.durable import DAMAGED, TEMPORARY
from imgfs.testing.build import image
from imgfs.testing.images import File, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import Mounted
from tests.support.programs import run

ONE, TWO = b"1" * 70_000, b"2" * 5000
MADE = image([layer([File("etc/one", ONE)]), layer([File("two", TWO)], "none")])
Harm = Callable[[Path], None]


def cut(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip bits of one byte in the middle of the file, in place, so that other hard links are damaged too.

    In the database, flip the first byte of the second page: SQLite detects damage only in page structures.
    """
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(4096 if path.name == "imgfs.db" else path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x55]))


def delete(path: Path) -> None:
    path.unlink()


HARMS: dict[str, Harm] = {"cut": cut, "flip": flip, "delete": delete}


@dataclass(frozen=True)
class Damage:
    """A state directory, mounted or not, and its registry."""

    mounted: Mounted
    registry: FakeRegistry

    @property
    def state(self) -> Path:
        return self.mounted.state

    @property
    def name(self) -> Path:
        return self.mounted.path / f"images/{self.registry.host}/box:1"

    def only(self, pattern: str) -> Path:
        """Return the file that matches `pattern`. If there are several, prefer the one with the fewest hard links.

        That is the file of the compressed layer: the other layer's tar is also its blob.
        """
        found = [
            path for path in self.state.glob(pattern) if not any(word in str(path) for word in (DAMAGED, TEMPORARY))
        ]
        return min(found, key=lambda path: (path.stat().st_nlink, path))

    def run(self, command: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        """Run `imgfs check` or `imgfs repair`; return its exit code and the reported damage, without notes."""
        done = CliRunner().invoke(main, [command, "--state", str(self.state), "--format", "json", *options])
        assert done.stdout, done.stderr
        return done.exit_code, [one for one in json.loads(done.stdout) if one["damage"]]

    def damaged(self, *options: str) -> list[str]:
        """Return the paths that `imgfs check` reports as damaged."""
        code, report = self.run("check", *options)
        found = [one["path"] for one in report]
        assert code == (6 if found else 0)
        return found

    def assert_served(self, *, labelled: bool = True) -> None:
        """Check that the mounted tree shows all original content.

        A removed blob loses its labels, so pass `labelled=False` if the blob was removed and fetched again.
        """
        assert (self.name / "rootfs/etc/one").read_bytes() == ONE
        assert (self.name / "rootfs/two").read_bytes() == TWO
        for number in range(2):
            assert (self.name / f"layers/{number}").read_bytes() == MADE.layers[number].blob
        assert (self.name / "config.json").read_bytes() == MADE.config
        snapshots = self.mounted.snapshots
        assert (snapshots / "active/mine/rootfs/file").read_text() == "1"
        assert os.readlink(snapshots / "view") == "done"
        assert (snapshots / "view/rootfs/file").read_text() == "2"
        assert os.getxattr(snapshots / "done", "user.label.color") == b"red"
        labels = os.listxattr(self.mounted.content / MADE.layers[0].digest)
        assert ("user.label.shape" in labels) == labelled
        lease = self.mounted.path / ".imgfs/leases/mine"
        assert os.getxattr(lease, "user.imgfs.expires") == b"2199-01-31T12:00:00Z"
        assert os.readlink(lease / "it") == f"../../../content/{MADE.layers[0].digest}"


def furnish(mounted: Mounted, registry: FakeRegistry) -> Damage:
    """Fill a mounted state directory with blobs, layers, a view, an ingest, snapshots, labels and a lease."""
    made = Damage(mounted, registry)
    MADE.add_to(registry, "box", "1")
    (made.name / "pull").read_bytes()
    assert (made.name / "rootfs/two").read_bytes() == TWO
    for number in range(2):
        (made.name / f"layers/{number}").read_bytes()
    (mounted.path / "content/ingest/half").write_bytes(b"half")
    snapshots = mounted.snapshots
    chain = os.readlink(snapshots / f"{os.readlink(made.name).rpartition('/')[2]}@linux-amd64")
    for key, text in (("mine", "1"), ("other", "2")):
        (snapshots / "active" / key).mkdir()
        (snapshots / "active" / key / "parent").symlink_to(f"../../{chain}")
        (snapshots / "active" / key / "rootfs/file").write_text(text)
    (snapshots / "active/other").rename(snapshots / "done")
    (snapshots / "view").symlink_to("done")
    os.setxattr(snapshots / "done", "user.label.color", b"red")
    os.setxattr(mounted.content / MADE.layers[0].digest, "user.label.shape", b"round")
    lease = mounted.path / ".imgfs/leases/mine"
    lease.mkdir()
    (lease / "it").symlink_to(f"../../../content/{MADE.layers[0].digest}")
    os.setxattr(lease, "user.imgfs.expires", b"2199-01-31T12:00:00Z")
    return made


def picture(state: Path) -> dict[str, bytes]:
    """Return the bytes of all files, without the log, the lock and SQLite's side files."""
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file() and path.name not in ("log", "lock") and not path.name.startswith("imgfs.db-")
    }


def put_back(kept: Path, state: Path) -> None:
    """Replace `state` by a copy of `kept`, with hard links and attributes."""
    shutil.rmtree(state, ignore_errors=True)
    run("cp", "-a", kept, state)
