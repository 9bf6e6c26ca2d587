"""kill -9 of the daemon at any system call: a snapshot is complete or absent, and acknowledged changes are kept."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.preparing import Workshop, digest_of, kind, mount_table, workshop
from tests.mount.scene import until
from tests.support.mounted import PATIENCE, Mounted
from tests.support.programs import program

POINTS = [
    *(("fsync", number) for number in (2, 4)),
    *(("fdatasync", number) for number in (1, 2, 3, 4, 5, 7, 8, 10)),
    *(("mkdir", number) for number in (1, 3)),
    *(("rename", number) for number in (1, 2)),
    ("move_mount", 1),
    ("fsmount", 2),
    ("umount2", 1),
    ("syncfs", 1),
    ("rmdir", 1),
    ("chmod", 2),
    *(("writev", number) for number in (4, 16, 20)),
]
"""System calls before which the daemon is killed, counted for each thread from the first operation on."""

Picture = dict[str, str]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("crashes")) as made:
        yield made


class Life:
    """A user's operations on one snapshot, step by step, and the state that must be visible after each step."""

    def __init__(self, shop: Workshop, key: str) -> None:
        self.shop = shop
        self.key = shop.active(key)
        self.name = shop.at(f"{key}-done")
        self.view = shop.at(f"{key}-view")
        self.child = shop.active(f"{key}-child")

    @property
    def steps(self) -> list[tuple[Callable[[], object], Picture]]:
        """Each step, with the names that it adds to the expected state. An empty string removes one."""
        return [
            (self.key.mkdir, {"key": "active"}),
            (
                lambda: (self.key / "parent").symlink_to(f"../../{self.shop.base}"),
                {"parent": self.shop.base, "etc": "gone os"},
            ),
            (lambda: os.setxattr(self.key, "user.label.a", b"b"), {"label": "b"}),
            (self._write, {"text": "written"}),
            (self._delete, {"etc": "os"}),
            (lambda: os.rename(self.key, self.name), {"key": "committed"}),
            (lambda: self.view.symlink_to(self.name.name), {"view": self.name.name}),
            (self.child.mkdir, {"child": "active"}),
            (lambda: (self.child / "parent").symlink_to(f"../../{self.name.name}"), {"child": "has etc"}),
            (lambda: (self.child / "rootfs/text").write_text("more"), {"child": "has more"}),
            (self.child.rmdir, {"child": ""}),
            (self.view.unlink, {"view": ""}),
            (self.name.rmdir, dict.fromkeys(("key", "parent", "label", "text", "etc"), "")),
        ]

    def live(self) -> list[Picture]:
        """Run steps until one fails. Return the two valid states then: before the failed step, and after it."""
        picture: Picture = {}
        for step, change in self.steps:
            after = {name: word for name, word in {**picture, **change}.items() if word}
            try:
                step()
            except OSError:
                return [picture, after]
            picture = after
        return [picture]

    def picture(self) -> Picture:
        """Return the visible state."""
        place = self.key if self.key.exists() else self.name
        if not place.exists():
            return {}
        seen = {"key": kind(place), "etc": " ".join(sorted(listed(place / "rootfs/etc"))), "child": self._child()}
        if (place / "parent").is_symlink():
            seen["parent"] = os.readlink(place / "parent").rpartition("/")[2]
        if "user.label.a" in os.listxattr(place):
            seen["label"] = os.getxattr(place, "user.label.a").decode()
        if self.view.is_symlink():
            seen["view"] = os.readlink(self.view)
        if (place / "rootfs/text").exists():
            seen["text"] = (place / "rootfs/text").read_text()
        return {name: word for name, word in seen.items() if word}

    def _child(self) -> str:
        if not self.child.exists():
            return ""
        if not (self.child / "parent").is_symlink():
            return "active"
        text = (self.child / "rootfs/text").read_text()
        return f"has {text if text != 'written' else 'etc'}"

    def _write(self) -> None:
        (self.key / "rootfs/text").write_text("written")

    def _delete(self) -> None:
        os.unlink(self.key / "rootfs/etc/gone")


def listed(path: Path) -> list[str]:
    """Return the names in a directory, or none if it does not exist."""
    return os.listdir(path) if path.exists() else []


@contextmanager
def killed_at(mounted: Mounted, call: str, number: int) -> Generator[None]:
    """Kill the daemon before the `number`th `call` of a thread, and at the latest at the end of the block."""
    pid = mounted.pid()
    assert pid is not None
    command = [program("strace"), "-f", "-p", str(pid), "-o", os.devnull, "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:signal=KILL:when={number}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        daemon = os.pidfd_open(pid)
        try:
            yield
            if mounted.pid() is not None:
                mounted.kill()
            assert select.select([daemon], [], [], PATIENCE)[0], "the daemon cannot die"
        finally:
            os.close(daemon)
            tracer.terminate()
            tracer.communicate(timeout=PATIENCE)


def mounts_below(path: Path) -> list[str]:
    return [line for line in mount_table().split("\n") if f" {path}/" in line]


def directories(shop: Workshop) -> set[str]:
    return {path.name for path in (shop.mount.state / "snapshots").iterdir() if path.name != "empty"}


def kept(shop: Workshop) -> int:
    """Count the listed snapshots that have a directory of their own."""
    own = [name for name in os.listdir(shop.mount.snapshots) if ":" not in name and name != "active"]
    return len(os.listdir(shop.at("active"))) + len([name for name in own if not shop.at(name).is_symlink()])


@pytest.mark.parametrize(("call", "number"), POINTS)
def test_a_kill_at_any_system_call_loses_no_acknowledged_change(shop: Workshop, call: str, number: int) -> None:
    key = f"{call}-{number}"
    life = Life(shop, key)
    with killed_at(shop.mount, call, number):
        allowed = life.live()
    shop.mount.start()
    assert mounts_below(shop.mount.path) == []
    assert life.picture() in allowed
    until(lambda: len(directories(shop)) == kept(shop))
    finish(life)
    until(lambda: len(directories(shop)) == kept(shop))


def finish(life: Life) -> None:
    """Check that every remaining snapshot can be used as if no crash had happened, and removed."""
    if life.child.exists():
        life.child.rmdir()
    if life.view.is_symlink():
        life.view.unlink()
    if life.key.exists():
        (life.key / "rootfs/again").write_text("1")
        os.rename(life.key, life.name)
        assert (life.name / "rootfs/again").read_text() == "1"
    if life.name.exists():
        life.name.rmdir()


def test_active_snapshots_keep_their_data_and_committed_ones_their_digest(shop: Workshop) -> None:
    root = shop.prepare("alive", shop.base)
    (root / "before").write_text("1")
    (root / "etc/os").write_text("changed")
    shop.make("finished", shop.base, file="2")
    digest = digest_of(shop.at("finished") / "layer.tar")
    os.listdir(shop.at("finished") / "rootfs")
    with (root / "before").open("a") as file:
        shop.mount.kill()
        file.write("2")
    shop.mount.start()
    assert mounts_below(shop.mount.path) == []
    assert (root / "before").read_text() == "12"
    assert (root / "etc/os").read_text() == "changed"
    assert digest_of(shop.at("finished") / "layer.tar") == digest
    assert (shop.commit("alive", "survivor") / "before").read_text() == "12"


def test_a_remount_finds_all_snapshots_and_leaves_no_mount(shop: Workshop) -> None:
    shop.make("lasting", shop.base, file="1")
    shop.at("lasting-view").symlink_to("lasting")
    (shop.prepare("lasting-active", "lasting") / "file").write_text("2")
    os.listdir(shop.at("lasting") / "rootfs")
    assert len(mounts_below(shop.mount.path)) >= 2
    shop.mount.stop()
    assert mounts_below(shop.mount.path) == []
    assert os.listdir(shop.mount.path) == []
    shop.mount.start()
    assert (shop.at("lasting-view") / "rootfs/file").read_text() == "1"
    assert (shop.active("lasting-active") / "rootfs/file").read_text() == "2"
    assert os.readlink(shop.active("lasting-active") / "parent") == "../../lasting"
    assert kind(shop.at("lasting")) == "committed"
