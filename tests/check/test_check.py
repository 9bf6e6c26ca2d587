"""Each file of a state directory is damaged in turn: check names it, repair mends it, the next check is clean."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.testing.build import image
from imgfs.testing.images import File, layer
from imgfs.testing.registry import FakeRegistry
from tests.support.mounted import Mounted

MADE = image([layer([File("etc/one", b"1" * 70_000)]), layer([File("two", b"2" * 5000)], "none")])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.fixture
def mounted(mounted: Mounted, registry: FakeRegistry) -> Mounted:
    """A mount whose state has blobs, layers, a view, an ingest and a snapshot; unmounted."""
    MADE.add_to(registry, "box", "1")
    name = mounted.path / f"images/{registry.host}/box:1"
    (name / "pull").read_bytes()
    assert (name / "rootfs/two").read_bytes() == b"2" * 5000
    (name / "layers/0").read_bytes()
    (mounted.path / "content/ingest/half").write_bytes(b"half")
    (mounted.path / "snapshots/active/mine").mkdir()
    (mounted.path / "snapshots/active/mine/rootfs/file").write_text("1")
    mounted.stop()
    return mounted


def check(mounted: Mounted, *options: str, command: str = "check") -> tuple[int, list[str]]:
    done = mounted.run(command, "--state", str(mounted.state), "--format", "json", *options)
    return done.returncode, [one["path"] for one in json.loads(done.stdout)]


def test_a_whole_state_directory_is_clean_and_is_not_changed(mounted: Mounted) -> None:
    before = sorted((path, path.lstat().st_mtime_ns) for path in mounted.state.rglob("*") if path.is_file())
    assert check(mounted) == (0, [])
    assert check(mounted, "--deep") == (0, [])
    after = sorted((path, path.lstat().st_mtime_ns) for path in mounted.state.rglob("*") if path.is_file())
    assert [one for one in after if "imgfs.db-" not in str(one[0])] == before
    mounted.start()
    assert check(mounted, "--deep") == (0, [])


@pytest.mark.parametrize("harm", [cut, flip], ids=["cut", "flip"])
@pytest.mark.parametrize("pattern", ["blobs/*/*/*", "layers/*/*/tar", "layers/*/*/index", "views/*.erofs"])
def test_what_is_damaged_is_named_mended_and_served_again(
    mounted: Mounted, registry: FakeRegistry, pattern: str, harm: Callable[[Path], None]
) -> None:
    for path in sorted(mounted.state.glob(pattern)):
        if path.stat().st_nlink > 1:
            continue  # a plain layer is one file under two names, and both are named
        place = str(path.relative_to(mounted.state)).removesuffix("/tar")
        harm(path)
        code, found = check(mounted, "--deep")
        assert (code, found) == (6, [place])
        assert check(mounted, "--deep", command="repair") == (0, [place])
        code, left = check(mounted, "--deep")
        assert all(one.endswith(".damaged") for one in left), left
        for one in left:
            aside = mounted.state / one
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    mounted.start()
    name = mounted.path / f"images/{registry.host}/box:1"
    assert (name / "rootfs/two").read_bytes() == b"2" * 5000
    assert (name / "rootfs/etc/one").read_bytes() == b"1" * 70_000
    (name / "layers/0").read_bytes()


def test_what_only_a_user_can_mend_is_left_and_told(mounted: Mounted) -> None:
    shutil.rmtree(mounted.state / "snapshots/1")
    next(mounted.state.glob("ingest/*/meta")).write_bytes(b"{")
    code, found = check(mounted)
    assert (code, len(found)) == (6, 2)
    assert check(mounted, command="repair") == (6, found)


def test_repair_needs_the_state_for_itself(mounted: Mounted) -> None:
    mounted.start()
    done = mounted.run("repair", "--state", str(mounted.state))
    assert (done.returncode, "is in use by pid" in done.stderr) == (7, True)


def test_a_damaged_database_is_named(mounted: Mounted) -> None:
    (mounted.state / "imgfs.db").write_bytes(b"no database" * 1000)
    code, found = check(mounted)
    assert (code, found) == (6, ["imgfs.db"])


def test_a_state_directory_that_is_not_there(mounted: Mounted, tmp_path: Path) -> None:
    done = mounted.run("check", "--state", str(tmp_path / "nowhere"))
    assert (done.returncode, "no such state directory" in done.stderr) == (3, True)
