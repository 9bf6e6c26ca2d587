"""`imgfs snapshot` as a user runs it: processes against a real mount, a real daemon and a registry on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import signal
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest

from imgfs.oci.digest import chain_id
from imgfs.testing.faults import stall
from imgfs.testing.images import File, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import IMGFS, PATIENCE, Mounted

BOX = image([layer([File("etc/box", b"1" * 5000)]), layer([File("etc/more", b"2")], "none")])
CHAIN = chain_id(BOX.diff_ids)
BIG = 4 << 20
"""More than any pipe holds."""


@pytest.fixture
def name(mounted: Mounted, registry: FakeRegistry) -> str:
    """An image that is not here yet."""
    BOX.add_to(registry, "box", "1")
    return f"{registry.host}/box:1"


def done(mounted: Mounted, *arguments: str) -> str:
    """What a command prints that succeeds without a word on stderr."""
    ended = mounted.run("snapshot", *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.rstrip("\n")


def prepared(mounted: Mounted, key: str, *parent: str) -> Path:
    """The rootfs of a new snapshot."""
    return Path(done(mounted, "prepare", key, *parent))


def listed(mounted: Mounted, *options: str) -> dict[str, dict[str, object]]:
    """The rows of `snapshot ls` by id."""
    return {row["id"]: row for row in json.loads(done(mounted, "ls", "--format", "json", *options))}


def environment(mounted: Mounted) -> dict[str, str]:
    return os.environ | {"IMGFS_MOUNTPOINT": str(mounted.path)}


def test_life_of_a_snapshot(mounted: Mounted, name: str) -> None:
    rootfs = prepared(mounted, "k", name)
    assert (rootfs / "etc/box").read_bytes() == b"1" * 5000
    (rootfs / "etc/new").write_text("written")
    (rootfs / "etc/box").unlink()
    assert done(mounted, "path", "active/k") == str(rootfs)
    assert done(mounted, "commit", "k", "site") == ""
    assert sorted(os.listdir(f"{done(mounted, 'path', 'site')}/etc")) == ["more", "new"]
    view = Path(done(mounted, "view", "v", "site"))
    assert (view / "etc/new").read_text() == "written"
    assert done(mounted, "rm", "v", "site") == ""
    assert listed(mounted) == {}


def test_ls_tells_what_lies_on_what(mounted: Mounted, name: str) -> None:
    prepared(mounted, "k", name)
    done(mounted, "commit", "k", "site")
    prepared(mounted, "k", "site")
    done(mounted, "view", "v", CHAIN)
    rows = listed(mounted, "-a")
    assert {id: (row["kind"], row["parent"]) for id, row in rows.items()} == {
        "active/k": ("active", "site"),
        "site": ("committed", CHAIN),
        "v": ("view", CHAIN),
        CHAIN: ("committed", BOX.diff_ids[0]),
        BOX.diff_ids[0]: ("committed", None),
    }
    assert rows["site"]["children"] == ["active/k"]
    assert rows[CHAIN]["children"] == ["site", "v"]
    assert isinstance(rows["site"]["usage"], int)
    assert all(row["created"] for row in rows.values())


def test_ls_prepare_and_path_mount_no_writable_rootfs(mounted: Mounted, name: str) -> None:
    rootfs = prepared(mounted, "k", name)
    listed(mounted, "-a")
    done(mounted, "path", "active/k")
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()


def test_used_snapshot_is_7_in_the_daemons_words(mounted: Mounted, name: str) -> None:
    rootfs = prepared(mounted, "k", name)
    with (rootfs / "etc/box").open():
        for arguments in (("commit", "k", "site"), ("rm", "active/k")):
            refused = mounted.run("snapshot", *arguments)
            assert (refused.returncode, refused.stdout) == (7, "")
            assert "snapshots/active/k/rootfs: is in use; end the processes in it" in refused.stderr
    done(mounted, "commit", "k", "site")


def test_snapshot_with_children_is_7_and_they_are_named(mounted: Mounted) -> None:
    prepared(mounted, "k")
    done(mounted, "commit", "k", "site")
    prepared(mounted, "next", "site")
    refused = mounted.run("snapshot", "rm", "site")
    assert refused.returncode == 7
    assert "has children active/next; remove them first" in refused.stderr
    done(mounted, "rm", "active/next", "site")


def test_chain_of_an_image_cannot_be_removed(mounted: Mounted, name: str) -> None:
    prepared(mounted, "k", name)
    refused = mounted.run("snapshot", "rm", CHAIN)
    assert refused.returncode == 4
    assert "belongs to the images with these layers" in refused.stderr


def test_image_that_does_not_exist_leaves_no_key(mounted: Mounted, registry: FakeRegistry) -> None:
    refused = mounted.run("snapshot", "prepare", "k", f"{registry.host}/nope:1")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "404" in refused.stderr
    assert listed(mounted) == {}


def test_ctrl_c_while_an_image_comes_is_130_and_leaves_no_key(
    mounted: Mounted, registry: FakeRegistry, name: str
) -> None:
    registry.fault(stall(10), f"GET .*/blobs/{BOX.layers[1].digest}")
    command = [*IMGFS, "snapshot", "prepare", "k", name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(mounted)) as process:
        assert registry.valve.wait_arrival()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[1] == b"imgfs: interrupted\n"
    assert process.returncode == 130
    registry.release()
    assert listed(mounted) == {}


def test_export_is_a_layer_of_the_changes(mounted: Mounted, name: str, tmp_path: Path) -> None:
    rootfs = prepared(mounted, "k", name)
    (rootfs / "etc/new").write_text("written")
    (rootfs / "etc/box").unlink()
    command = [*IMGFS, "snapshot", "export", "active/k"]
    piped = subprocess.run(command, capture_output=True, check=True, env=environment(mounted)).stdout
    with tarfile.open(fileobj=io.BytesIO(piped)) as tar:
        assert sorted(tar.getnames()) == [".", "etc", "etc/.wh.box", "etc/new"]
    done(mounted, "commit", "k", "site")
    told = done(mounted, "export", "site", "-o", str(tmp_path / "layer.tar"))
    assert (tmp_path / "layer.tar").read_bytes() == piped
    assert told == f"sha256:{hashlib.sha256(piped).hexdigest()}"


def test_export_of_a_chain_is_its_very_layer(mounted: Mounted, name: str) -> None:
    prepared(mounted, "k", name)
    assert done(mounted, "export", CHAIN, "-o", "/dev/null") == BOX.diff_ids[1]


def test_file_that_changes_under_an_export_is_7_in_the_daemons_words(mounted: Mounted, tmp_path: Path) -> None:
    rootfs = prepared(mounted, "k")
    (rootfs / "big").write_bytes(bytes(16 * BIG))
    command = [*IMGFS, "snapshot", "export", "active/k"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment(mounted)
    ) as process:
        assert process.stdout
        assert process.stdout.read(1)
        (rootfs / "big").write_bytes(b"other")
        _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 7
    assert b"changed during the export; end the processes that write to it" in complaint


def test_reader_that_has_seen_enough_ends_an_export_quietly(mounted: Mounted) -> None:
    rootfs = prepared(mounted, "k")
    (rootfs / "big").write_bytes(os.urandom(BIG))
    command = [*IMGFS, "snapshot", "export", "active/k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(mounted)) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_terminal_gets_no_layer(mounted: Mounted) -> None:
    prepared(mounted, "k")
    ours, theirs = os.openpty()
    command = [*IMGFS, "snapshot", "export", "active/k"]
    refused = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, check=False, env=environment(mounted))
    os.close(theirs)
    assert refused.returncode == 2
    assert b"name a file with -o" in refused.stderr
    assert _rest(ours) == b""


def test_progress_of_an_export_is_drawn_on_a_terminal(mounted: Mounted, tmp_path: Path) -> None:
    rootfs = prepared(mounted, "k")
    (rootfs / "big").write_bytes(bytes(BIG))
    ours, theirs = os.openpty()
    command = [*IMGFS, "snapshot", "export", "active/k", "-o", str(tmp_path / "layer")]
    told = environment(mounted) | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=told) as process:
        os.close(theirs)
        assert b"MB" in _rest(ours)
        assert process.communicate(timeout=PATIENCE)[0].startswith(b"sha256:")
    assert process.returncode == 0


def test_umount_with_snapshots_in_the_tree_and_everything_there_again_after(mounted: Mounted, name: str) -> None:
    (prepared(mounted, "k", name) / "new").write_text("written")
    mounted.stop()
    mounted.start()
    assert listed(mounted)["active/k"]["parent"] == CHAIN
    assert (Path(done(mounted, "path", "active/k")) / "new").read_text() == "written"


def _rest(terminal: int) -> bytes:
    """What is written to a terminal until its last writer is gone (then reading it is EIO)."""
    drawn = b""
    with suppress(OSError):
        while select.select([terminal], [], [], PATIENCE)[0] and (piece := os.read(terminal, 1 << 16)):
            drawn += piece
    os.close(terminal)
    return drawn
