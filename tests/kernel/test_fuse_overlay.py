"""fuse-overlayfs, as root and as an ordinary user."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.errors import ImgfsError, Invalid, NotFound, NotPermitted, StorageFailed, TimedOut, Unsupported
from imgfs.kernel import fuse_overlay
from imgfs.kernel.fuse_overlay import mount_fuse_overlay
from imgfs.kernel.mounts import mount_at, unmount
from tests.kernel.pieces import directory, mounts_of
from tests.mount.test_user import USER, Home, namespace

CALL = """
import sys
from pathlib import Path
from imgfs.errors import ImgfsError
from imgfs.kernel.fuse_overlay import mount_fuse_overlay
lower, target, upper, work = sys.argv[1:]
try:
    mount_fuse_overlay([lower], target, Path(upper), Path(work))
except ImgfsError as error:
    print(type(error).__name__, error.message)
else:
    (Path(target) / "new").write_text("text")
    print(*sorted(path.name for path in Path(target).iterdir()))
"""


def refuse(lowers: list[str], target: Path, upper: Path | None = None, work: Path | None = None) -> ImgfsError:
    """Return the error of a failed mount, and check that no mount is left."""
    before = mounts_of(target)
    with pytest.raises(ImgfsError) as caught:
        mount_fuse_overlay(lowers, str(target), upper, work)
    assert mounts_of(target) == before
    return caught.value


@pytest.mark.parametrize("name", ["plain", "a,b", "back\\slash"])
def test_changes_reach_the_upper_and_no_lower(place: Path, name: str) -> None:
    near, far = directory(place / name / "near", a="near"), directory(place / "far", a="far", b="far")
    upper, work, target = (directory(place / name / part) for part in ("upper", "work", "target"))
    mount_fuse_overlay([str(near), str(far)], str(target), upper, work)
    assert ((target / "a").read_text(), (target / "b").read_text()) == ("near", "far")
    (target / "b").write_text("new")
    assert (upper / "b").read_text() == "new"
    unmount(str(target))
    assert os.listdir(target) == []
    assert (far / "b").read_text() == "far"


def test_without_upper_it_is_read_only(place: Path) -> None:
    lower, target = directory(place / "lower", a="1"), directory(place / "target")
    mount_fuse_overlay([str(lower)], str(target), None, None)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()


def test_relative_paths_and_a_target_like_an_option(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    directory(place / "lower", a="1")
    directory(place / "-o")
    mount_fuse_overlay(["lower"], "-o", None, None)
    assert mount_at(str(place / "-o"))


def test_errors_name_the_missing_directory(place: Path) -> None:
    error = refuse([str(place / "none")], directory(place / "target"))
    assert isinstance(error, NotFound)
    assert error.message == f"{place}/none: there is no such directory to overlay"
    assert isinstance(refuse([str(place)], place / "none"), NotFound | Invalid)


def test_malformed_arguments_start_nothing(place: Path) -> None:
    assert isinstance(refuse([], place), Invalid)
    assert isinstance(refuse([str(place)], place, place, None), Invalid)
    upper = directory(place / "a:b")
    assert "cannot write below a path with a colon" in refuse([str(place)], place, upper, upper).message


def test_lowers_may_have_colons(place: Path) -> None:
    lower, target = directory(place / "a:b", a="1"), directory(place / "target")
    mount_fuse_overlay([str(lower), str(place)], str(target), None, None)
    assert (target / "a").read_text() == "1"


def test_program_that_is_missing_broken_or_hanging(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert isinstance(refuse([str(place)], place), Unsupported)
    (place / "fusermount3").touch(mode=0o755)
    (place / "fuse-overlayfs").touch(mode=0o755)
    assert isinstance(refuse([str(place)], place), StorageFailed)
    (place / "fuse-overlayfs").write_text("#!/bin/sh\nexit 3\n")
    assert refuse([str(place)], place).message.endswith("exit status 3")
    monkeypatch.setattr(fuse_overlay, "_PATIENCE", 0.01)
    (place / "fuse-overlayfs").write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    assert isinstance(refuse([str(place)], place), TimedOut)


@pytest.fixture
def home() -> Iterator[Home]:
    """An ordinary user's directory in a mount namespace where users may use FUSE. Its mounts end with the namespace."""
    public = Path(tempfile.mkdtemp(prefix="imgfs-user-"))
    try:
        public.chmod(0o755)
        for path in (public / "home", *(public / "home" / name for name in ("mnt", "target", "upper", "work"))):
            path.mkdir()
            os.chown(path, USER, USER)
        with namespace(public) as pid:
            yield Home(public / "home", pid)
    finally:
        shutil.rmtree(public)


def as_user(home: Home, lower: Path, target: Path) -> str:
    """Run the call as the user, unmount the overlay, and return the output."""
    done = home.run(sys.executable, "-c", CALL, lower, target, home.path / "upper", home.path / "work")
    assert not done.stderr
    home.run("fusermount3", "-u", target)
    return done.stdout.strip()


def test_an_ordinary_user_overlays_their_own_directory(home: Home) -> None:
    done = home.mount()
    assert done.returncode == 0, done.stderr
    try:
        names = as_user(home, home.mountpoint, home.path / "target").split()
        assert {"new", "content", "images"} <= set(names)
        assert os.listdir(home.path / "upper") == ["new"]
        inside = as_user(home, home.mountpoint / "images", home.mountpoint / "snapshots")
        assert inside.startswith("NotPermitted")
        assert "failed to access mountpoint" in inside
    finally:
        home.clear()


def test_an_ordinary_user_cannot_overlay_directories_of_others(home: Home) -> None:
    answer = as_user(home, home.path, Path("/usr"))
    assert answer.startswith(NotPermitted.__name__)
    assert "user has no write access to mountpoint /usr" in answer
