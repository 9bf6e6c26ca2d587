"""Manual work of an administrator: mounts at unusual places, and the host's tools in a writable snapshot."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from imgfs.errors import Unsupported
from imgfs.fs.caller import Caller, Waiters
from imgfs.kernel.mounts import mount_at, mounts
from imgfs.snapshots.upper import KERNEL, ROOTLESS, read_upper
from imgfs.testing.registry import FakeRegistry
from tests.mount.preparing import BASE, add_base, chain_ids, commit, prepare
from tests.mount.scene import CONFIG, Scene, error_of, refused, succeed
from tests.support.mounted import Mounted
from tests.support.trees import Ignore, compare_trees, snapshot_tree

ODD = {
    "space": b"with space",
    "option": b"co,mm:a=",
    "backslash": b"back\\134\\",
    "not UTF-8": b"\xff\xfe",
    "ends of lines": b"cr\r\n\x0c\xc2\x85\xe2\x80\xa8#",
    "long": b"/".join([b"d" * 60] * 5),
}
CHAIN = chain_ids(BASE.diff_ids)[-1]


@pytest.mark.parametrize("name", ODD.values(), ids=ODD.keys())
def test_any_path_holds_a_mount_and_its_state(tmp_path: Path, registry: FakeRegistry, name: bytes) -> None:
    place = tmp_path / os.fsdecode(name)
    place.mkdir(parents=True)
    with Mounted(place, CONFIG) as mount:
        mount.start()
        add_base(Scene(registry, mount))
        (prepare(mount, "work", CHAIN) / "new").write_text("new")
        assert [one.filesystem for one in mounts() if str(place) in one.mountpoint][-1] == "overlay"
        assert (commit(mount, "work", "done") / "new").read_text() == "new"
        told = json.loads((mount.path / ".imgfs/state.json").read_bytes())
        assert told["mountpoint"] == bytes(mount.path).decode(errors="backslashreplace")
        mount.stop()
        assert mount_at(str(mount.path)) is None


def test_mountpoint_behind_a_link_is_the_same_mount(tmp_path: Path, registry: FakeRegistry) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Mounted(tmp_path / "link", CONFIG) as mount:
        mount.start()
        add_base(Scene(registry, mount))
        (prepare(mount, "work", CHAIN) / "new").write_text("new")
        assert (tmp_path / "real/mnt/snapshots/active/work/rootfs/new").read_text() == "new"
        mount.stop()
        assert mount_at(str(tmp_path / "real/mnt")) is None


def test_two_daemons_show_the_same_side_by_side(tmp_path: Path, registry: FakeRegistry) -> None:
    with (
        Mounted(
            tmp_path / "kernel",
        ) as one,
        Mounted(tmp_path / "fuse") as other,
    ):
        for mount, views in ((one, "kernel"), (other, "fuse")):
            mount.state.mkdir(parents=True)
            (mount.state / "imgfs.toml").write_text(f'{CONFIG}views = "{views}"\n')
            mount.start()
            add_base(Scene(registry, mount))
        roots = [mount.snapshots / CHAIN / "rootfs" for mount in (one, other)]
        succeed("diff", "-r", "--no-dereference", *roots)
        one.stop()
        assert (roots[1] / "etc/os").read_bytes() == b"base\n"


def test_tools_see_in_a_writable_snapshot_what_they_see_on_a_disk(tmp_path: Path, registry: FakeRegistry) -> None:
    script = """
        umask 022; mkdir d && cd d && for i in 1 2 3; do echo $i > f$i; mv f$i g$i; done
        mv ../data ../moved && mv ../moved ../data && rm -r ../srv && mkdir ../srv && ls -A ../srv
        ln ../data/big hard && cmp ../data/big hard && chown 5:6 ../etc/os && chmod 4711 ../etc/os
        touch -d @1.5 ../etc/os && truncate -s 1M sparse && fallocate -l 1M full && mkfifo pipe && mknod null c 1 3
        tar cf ../all.tar --sort=name ../etc && rm -r ../etc && tar xpf ../all.tar -C .. && rm ../all.tar
        setfattr -n user.x -v 1 g1 && cp -a ../etc copied && stat -c '%n %F %a %u %g %h %s %Y' * ../etc/* ../data/file
    """
    with Mounted(tmp_path, CONFIG) as mount:
        mount.start()
        add_base(Scene(registry, mount))
        disk, root = tmp_path / "disk", prepare(mount, "work", CHAIN)
        succeed("cp", "-a", f"{root}/.", disk)
        outcomes = [subprocess.run(["sh", "-ec", script], cwd=place, capture_output=True) for place in (disk, root)]
        assert outcomes[0].returncode == 0, outcomes[0].stderr
        assert _told(outcomes[1]) == _told(outcomes[0])
        times = Ignore("mtime_ns", "each run has its own")
        assert compare_trees(snapshot_tree(disk), snapshot_tree(root), [times]) == []


def _told(done: subprocess.CompletedProcess[bytes]) -> list[list[str]]:
    """Return what the program printed, without times."""
    assert done.stderr.replace(b"tar: Removing leading `../' from member names\n", b"") == b""
    return [line.split()[:-1] for line in done.stdout.decode().splitlines()]


def test_mount_forgotten_in_a_writable_snapshot_is_named(tmp_path: Path, registry: FakeRegistry) -> None:
    with Mounted(tmp_path, CONFIG) as mount:
        mount.start()
        add_base(Scene(registry, mount))
        root = prepare(mount, "work", CHAIN)
        succeed("mount", "-t", "tmpfs", "none", root / "srv")
        with refused(errno.EBUSY):
            commit(mount, "work", "done")
        assert error_of(root.parent).endswith(f"has mounts in it; `umount -R` them first: {root}/srv")
        succeed("umount", root / "srv")
        commit(mount, "work", "done")
        assert error_of(mount.snapshots / "done") == ""


def test_only_mounting_programs_of_the_daemon_count_as_it() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        waiters = Waiters(trio.Event())
        assert Caller(os.getpid(), 0, waiters).is_daemon
        assert not Caller(child.pid, 0, waiters).is_daemon
        assert not Caller(os.getppid(), 0, waiters).is_daemon


def test_whiteout_of_a_marked_name_makes_no_directory_opaque(tmp_path: Path) -> None:
    os.mknod(tmp_path / ".wh..opq", stat.S_IFCHR, 0)
    assert [change.entry.path for change in read_upper(tmp_path, ROOTLESS)] == [b""]
    with pytest.raises(Unsupported, match="take it for a whiteout"):
        list(read_upper(tmp_path, KERNEL))
