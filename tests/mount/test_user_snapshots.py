"""Writable snapshots of an ordinary user: fuse-overlayfs if root may enter the mount, else an error."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import chain_ids
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import until
from tests.mount.test_user import BOX, USER, Done, Home, add, home, public, wait_end

__all__ = ["home", "public"]
CHAIN = chain_ids(BOX.diff_ids)[-1]
ROOTFS = "snapshots/active/work/rootfs"


class Workshop(Home):
    """A user's mount with an active snapshot `work` on the image."""

    def sh(self, script: str, *, code: int = 0) -> Done:
        """Run a script in the mountpoint as the user."""
        done = self.run("sh", "-c", f"cd {self.mountpoint} && {script}")
        assert done.returncode == code, (script, done.stdout, done.stderr, (self.state / "log").read_text())
        return done

    def begin(self, registry: FakeRegistry, config: str = "") -> None:
        """Mount with this configuration, pull the image, and prepare `work` on it."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        (self.state / "imgfs.toml").write_text(config)
        for path in (self.state, self.state / "imgfs.toml"):
            os.chown(path, USER, USER)
        done = self.mount()
        assert done.returncode == 0, done.stderr
        self.sh(f"cat images/{add(registry)}/rootfs/hello")
        self.prepare("work", CHAIN)

    def prepare(self, key: str, parent: str) -> None:
        """Make the snapshot (mkdir) and the link to its parent."""
        self.sh(f"mkdir snapshots/active/{key} && ln -s ../../{parent} snapshots/active/{key}/parent")

    def overlays(self) -> list[str]:
        """Return the mountpoints of fuse-overlayfs in the namespace."""
        lines = self.run("cat", "/proc/self/mountinfo").stdout.splitlines()
        return [line.split()[4] for line in lines if "fuse.fuse-overlayfs" in line]


@pytest.fixture
def workshop(home: Home, public: Path) -> Iterator[Workshop]:
    """Like `home`, but root has set user_allow_other."""
    (public / "fuse.conf").write_text("user_allow_other\n")
    assert home.run("mount", "--bind", public / "fuse.conf", "/etc/fuse.conf", uid=0).returncode == 0
    made = Workshop(home.path, home.namespace)
    yield made
    made.clear()


def test_user_writes_commits_and_removes(workshop: Workshop, registry: FakeRegistry) -> None:
    workshop.begin(registry, 'access = "all"\n')
    assert workshop.sh(f"cat {ROOTFS}/hello").stdout == "hello\n"
    workshop.sh(f"cd {ROOTFS} && echo new > new && rm hello && rm -r bin && mkdir bin && mv link moved")
    assert workshop.overlays() == [str(workshop.mountpoint / ROOTFS)]
    workshop.sh("mv snapshots/active/work snapshots/done")
    assert workshop.overlays() == []
    assert workshop.sh("cat snapshots/done/rootfs/new && ls snapshots/done/rootfs").stdout.split() == [
        "new",
        *("bin", "dev", "moved", "new", "secret"),
    ]
    assert "Read-only" in workshop.sh("touch snapshots/done/rootfs/x", code=1).stderr
    layer = workshop.sh("tar tf snapshots/done/layer.tar").stdout.split()
    assert sorted(layer) == ["./", ".wh.hello", ".wh.link", "bin/", "bin/.wh..wh..opq", "moved", "new"]
    workshop.prepare("next", "done")
    workshop.sh("cat snapshots/active/next/rootfs/new; echo more >> snapshots/active/next/rootfs/new")
    assert workshop.sh("cat snapshots/active/next/rootfs/new").stdout == "new\nmore\n"
    assert workshop.sh("cat snapshots/done/rootfs/new").stdout == "new\n"
    workshop.sh("rmdir snapshots/active/next && rmdir snapshots/done && ls -A snapshots/active")
    assert workshop.overlays() == []
    assert workshop.imgfs("umount").returncode == 0


def test_new_files_have_the_requested_mode_and_belong_to_the_user(workshop: Workshop, registry: FakeRegistry) -> None:
    workshop.begin(registry, 'access = "all"\n')
    shown = workshop.sh(f"umask 022; cd {ROOTFS}; touch file; mkdir directory; stat -c '%a %u' . file directory hello")
    assert shown.stdout.splitlines() == [f"{mode} {USER}" for mode in ("755", "644", "755", "644")]


def test_a_used_snapshot_is_busy_and_its_overlay_ends_with_the_mount(
    workshop: Workshop, registry: FakeRegistry
) -> None:
    workshop.begin(registry, 'access = "all"\n')
    script = f"exec 3< {ROOTFS}/hello; mv snapshots/active/work snapshots/done || rmdir snapshots/active/work"
    assert workshop.sh(script, code=1).stderr.count("busy") == 2
    workshop.sh(f"echo kept > {ROOTFS}/kept")
    assert workshop.imgfs("umount").returncode == 0
    assert workshop.overlays() == []
    assert workshop.mount().returncode == 0
    assert workshop.sh(f"cat {ROOTFS}/kept").stdout == "kept\n"


def test_killed_daemon_leaves_no_overlay(workshop: Workshop, registry: FakeRegistry) -> None:
    workshop.begin(registry, 'access = "all"\n')
    workshop.sh(f"echo kept > {ROOTFS}/kept")
    daemon = workshop.daemon()
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    wait_end(daemon)
    assert workshop.mount().returncode == 0
    assert workshop.overlays() == []
    assert workshop.sh(f"cat {ROOTFS}/kept").stdout == "kept\n"


def test_an_idle_overlay_is_unmounted_and_mounted_again(workshop: Workshop, registry: FakeRegistry) -> None:
    workshop.begin(registry, 'access = "all"\nview_idle_seconds = 1\n')
    workshop.sh(f"echo kept > {ROOTFS}/kept")
    until(lambda: workshop.overlays() == [])
    assert workshop.sh(f"cat {ROOTFS}/kept").stdout == "kept\n"


def test_the_error_without_access_for_root_names_it(workshop: Workshop, registry: FakeRegistry) -> None:
    workshop.begin(registry)
    assert "Operation not permitted" in workshop.sh(f"ls {ROOTFS}/", code=2).stderr
    told = workshop.sh("getfattr --only-values -n user.imgfs.error snapshots/active/work; cat .imgfs/log").stdout
    assert told.count('set access = \\"all\\"') + told.count('set access = "all"') == 2
    assert told.count("user_allow_other") == 2
    workshop.sh("rmdir snapshots/active/work")


def test_the_error_without_user_allow_other_names_it(home: Home, public: Path) -> None:
    home.state.mkdir(mode=0o700)
    (home.state / "imgfs.toml").write_text('access = "all"\n')
    for path in (home.state, home.state / "imgfs.toml"):
        os.chown(path, USER, USER)
    (public / "fuse.conf").touch()
    assert home.run("mount", "--bind", public / "fuse.conf", "/etc/fuse.conf", uid=0).returncode == 0
    done = home.mount()
    assert done.returncode == 4
    assert "user_allow_other" in done.stderr


def test_the_export_error_names_an_unreadable_file(workshop: Workshop, registry: FakeRegistry) -> None:
    workshop.begin(registry, 'access = "all"\n')
    workshop.sh(f"echo text > {ROOTFS}/closed && chmod 0 {ROOTFS}/closed && mv snapshots/active/work snapshots/done")
    assert "not permitted" in workshop.sh("cat snapshots/done/layer.tar > /dev/null", code=1).stderr
    assert "'closed' cannot be read" in workshop.sh("getfattr -n user.imgfs.error snapshots/done").stdout
