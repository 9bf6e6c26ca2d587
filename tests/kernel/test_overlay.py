"""Writable and read-only overlays: the merged tree, the upper directory, and the error of each refusal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imgfs.errors import Busy, ImgfsError, Invalid, NotFound
from imgfs.kernel.erofs import detached_erofs
from imgfs.kernel.mounts import mount_at, unmount
from imgfs.kernel.overlay import MOST_LOWERS, mount_overlay
from tests.kernel.pieces import content_of, directory, erofs_image, mounts_of, options, powerless
from tests.support.programs import run


class Scene:
    """An empty upper and work directory, and a target."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.upper, self.work, self.target = (directory(place / name) for name in ("upper", "work", "target"))

    def over_erofs(self, *lowers: Path, uuid: bytes = b"imgfs-test-image", trusted: bool = True) -> None:
        """Mount the upper over `lowers` and an EROFS with two files."""
        devices = erofs_image(self.place / "image", 2, uuid)
        with detached_erofs(self.place / "image", devices, trusted=True) as bottom:
            chain = [*map(str, lowers), bottom]
            mount_overlay(chain, str(self.target), upper=self.upper, work=self.work, trusted=trusted)

    def refuse(self, *lowers: Path, upper: Path | None, work: Path | None) -> ImgfsError:
        """Return the error of a failed mount, and check that no mount is left."""
        before, descriptors = mounts_of(self.place), len(os.listdir("/proc/self/fd"))
        with pytest.raises(ImgfsError) as caught:
            mount_overlay([*map(str, lowers)], str(self.target), upper=upper, work=work, trusted=True)
        assert (mounts_of(self.place), len(os.listdir("/proc/self/fd"))) == (before, descriptors)
        return caught.value


@pytest.fixture
def scene(place: Path) -> Scene:
    return Scene(place)


def test_changes_reach_the_upper_and_no_lower(scene: Scene) -> None:
    lower = directory(scene.place / "lower", kept="old", gone="old")
    scene.over_erofs(lower)
    assert (scene.target / "001").read_bytes() == content_of(1)
    (scene.target / "kept").write_text("new")
    (scene.target / "gone").unlink()
    (scene.target / "000").write_bytes(b"new")
    assert sorted(os.listdir(scene.upper)) == ["000", "gone", "kept"]
    assert (lower / "kept").read_text() == (lower / "gone").read_text() == "old"
    run("mv", scene.target / "001", scene.target / "002")
    assert (scene.target / "002").read_bytes() == content_of(1)


def test_restart_finds_it_by_its_source(scene: Scene) -> None:
    scene.over_erofs()
    found = mount_at(str(scene.target))
    assert found is not None
    assert (found.filesystem, found.source) == ("overlay", "imgfs")


def test_directory_of_a_lower_is_moved_by_copying_and_leaves_no_redirect(scene: Scene) -> None:
    lower = directory(scene.place / "lower")
    directory(lower / "old", file="text")
    scene.over_erofs(lower)
    with pytest.raises(OSError) as caught:
        (scene.target / "old").rename(scene.target / "new")
    assert caught.value.errno == errno.EXDEV
    run("mv", scene.target / "old", scene.target / "new")
    assert (scene.target / "new/file").read_text() == "text"
    assert "trusted.overlay.redirect" not in os.listxattr(scene.upper / "new")


def test_redirects_in_a_layer_are_not_followed(scene: Scene) -> None:
    lower, below = directory(scene.place / "lower"), directory(scene.place / "below")
    directory(below / "secret", file="text")
    directory(lower / "seen")
    os.setxattr(lower / "seen", "trusted.overlay.redirect", b"/secret")
    mount_overlay([str(lower), str(below)], str(scene.target), upper=scene.upper, work=scene.work, trusted=True)
    with pytest.raises(PermissionError):
        os.listdir(scene.target / "seen")


def test_everything_is_on_one_device(scene: Scene) -> None:
    scene.over_erofs(directory(scene.place / "lower", a="1"))
    (scene.target / "new").touch()
    stats = [os.stat(scene.target / name) for name in ("000", "001", "a", "new", ".")]
    assert len({stat.st_dev for stat in stats}) == 1
    assert len({stat.st_ino for stat in stats}) == 5


@pytest.mark.parametrize("count", [99, MOST_LOWERS - 1])
def test_long_chains_of_uppers_over_an_image(scene: Scene, count: int) -> None:
    lowers = [directory(scene.place / f"lowers/{number}", common=str(number)) for number in range(count)]
    (lowers[-1] / "deepest").write_text("here")
    scene.over_erofs(*lowers)
    assert (scene.target / "common").read_text() == "0"
    assert (scene.target / "deepest").read_text() == "here"
    assert (scene.target / "000").read_bytes() == content_of(0)


@pytest.mark.parametrize("count", [0, MOST_LOWERS + 1])
def test_the_limit_of_layers_is_reported(scene: Scene, count: int) -> None:
    error = scene.refuse(*[scene.place] * count, upper=scene.upper, work=scene.work)
    assert isinstance(error, Invalid)
    assert f"{count} layers below it, expected 1 to 500" in error.message


def test_without_upper_it_is_read_only(scene: Scene) -> None:
    near, far = directory(scene.place / "near", a="near"), directory(scene.place / "far", a="far", b="far")
    mount_overlay([str(near), str(far)], str(scene.target), upper=None, work=None, trusted=False)
    assert ((scene.target / "a").read_text(), (scene.target / "b").read_text()) == ("near", "far")
    assert options(scene.target) >= {"ro", "nosuid", "nodev"}
    with pytest.raises(OSError, match="Read-only"):
        (scene.target / "new").touch()


@pytest.mark.parametrize("detached", [True, False])
def test_single_lower_without_upper_is_itself_read_only(scene: Scene, detached: bool) -> None:
    devices = erofs_image(scene.place / "image", 2)
    with detached_erofs(scene.place / "image", devices, trusted=True) as bottom:
        lower = bottom if detached else str(directory(scene.place / "lower", **{"000": "", "001": ""}))
        mount_overlay([lower], str(scene.target), upper=None, work=None, trusted=False)
    assert sorted(os.listdir(scene.target)) == ["000", "001"]
    assert options(scene.target) >= {"ro", "nosuid", "nodev"}


@pytest.mark.parametrize(("trusted", "expected"), [(True, set[str]()), (False, {"nosuid", "nodev"})])
def test_setuid_and_devices_only_where_trusted(scene: Scene, trusted: bool, expected: set[str]) -> None:
    scene.over_erofs(trusted=trusted)
    assert options(scene.target) & {"ro", "nosuid", "nodev"} == expected


@pytest.mark.parametrize("name", ["a,b:c", "back\\slash", "é " * 50 + "x" * 100, "x" * 250])
def test_paths_of_any_length_and_letter(scene: Scene, name: str) -> None:
    odd = directory(scene.place / name)
    lowers = [directory(odd / "lower", a="1"), directory(odd / "second", b="2")]
    upper, work = directory(odd / "upper"), directory(odd / "work")
    mount_overlay([*map(str, lowers)], str(scene.target), upper=upper, work=work, trusted=True)
    (scene.target / "c").touch()
    assert sorted(os.listdir(scene.target)) == ["a", "b", "c"]
    assert os.listdir(upper) == ["c"]


def test_missing_directories_are_named(scene: Scene) -> None:
    lower, none = directory(scene.place / "lower"), scene.place / "none"
    for error in (
        scene.refuse(none, upper=scene.upper, work=scene.work),
        scene.refuse(lower, upper=none, work=scene.work),
        scene.refuse(lower, upper=scene.upper, work=none),
    ):
        assert isinstance(error, NotFound)
        assert error.message.startswith(f"{scene.target}: overlay with ")
        assert str(none) in error.message


def test_upper_and_work_go_together(scene: Scene) -> None:
    error = scene.refuse(scene.place, upper=scene.upper, work=None)
    assert isinstance(error, Invalid)
    assert "give both or none" in error.message


def test_the_error_of_an_upper_on_an_overlay_has_the_kernels_message(scene: Scene) -> None:
    scene.over_erofs()
    upper, work = directory(scene.target / "upper"), directory(scene.target / "work")
    error = scene.refuse(directory(scene.place / "lower"), upper=upper, work=work)
    assert isinstance(error, Invalid)
    assert "not supported as upperdir" in error.message
    assert "must not lie on overlayfs" in error.message


def test_overlay_in_use_stays(scene: Scene) -> None:
    scene.over_erofs()
    with (scene.target / "new").open("w"), pytest.raises(Busy):
        unmount(str(scene.target))
    unmount(str(scene.target))


def test_the_next_mount_of_an_upper_keeps_its_changes(scene: Scene) -> None:
    scene.over_erofs()
    (scene.target / "000").unlink()
    unmount(str(scene.target))
    scene.over_erofs()
    assert os.listdir(scene.target) == ["001"]


def test_without_the_capability_the_error_names_it(scene: Scene) -> None:
    code = """
import sys
from imgfs.errors import NotPermitted
from imgfs.kernel.overlay import mount_overlay
for lowers in ([sys.argv[1]], [sys.argv[1], sys.argv[1]]):
    try:
        mount_overlay(lowers, sys.argv[1], upper=None, work=None, trusted=True)
    except NotPermitted as error:
        print("CAP_SYS_ADMIN" in error.message)
"""
    assert powerless(code, scene.target).split() == ["True", "True"]
