"""The mount system calls: each error has the kernel's message, and no descriptor leaks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.errors import Invalid, NotFound, Unsupported
from imgfs.kernel.mountapi import NODEV, NOSUID, RDONLY, Detached, FilesystemContext, clone, clone_mount, restrict
from tests.kernel.pieces import directory, mounts_of, options, powerless


def tmpfs() -> Detached:
    with FilesystemContext("tmpfs", "here") as context:
        return context.create(0)


def test_the_error_of_a_refused_option_has_the_kernels_message() -> None:
    with FilesystemContext("tmpfs", "here") as context, pytest.raises(Invalid) as caught:
        context.set_string("colour", "blue")
    assert caught.value.message == "here: tmpfs with colour=blue is refused: tmpfs: Unknown parameter 'colour'"


def test_flag_and_descriptor_are_refused_alike() -> None:
    with FilesystemContext("tmpfs", "here") as context, Path("/dev/null").open() as file:
        with pytest.raises(Invalid, match="Unknown parameter 'bright'"):
            context.set_flag("bright")
        with pytest.raises(Invalid, match="Unknown parameter 'lamp'"):
            context.set_descriptor("lamp", file.fileno())


def test_unknown_filesystem_is_unsupported() -> None:
    with pytest.raises(
        Unsupported, match="here: the kernel refuses nosuchfs: No such device; load the kernel's module"
    ):
        FilesystemContext("nosuchfs", "here")


def test_value_that_is_too_long_is_invalid() -> None:
    with FilesystemContext("tmpfs", "here") as context, pytest.raises(Invalid, match="here: tmpfs with mode="):
        context.set_string("mode", "7" * 256)


def test_a_mount_has_no_path_until_it_is_attached(place: Path) -> None:
    target = directory(place / "target")
    before = mounts_of(place)
    with tmpfs() as mount:
        assert mounts_of(place) == before
        mount.restrict(RDONLY | NOSUID | NODEV)
        mount.attach(str(target))
    assert options(target) >= {"ro", "nosuid", "nodev"}


def test_link_as_target_is_not_followed(place: Path) -> None:
    (place / "link").symlink_to(directory(place / "elsewhere"))
    before = mounts_of(place)
    with tmpfs() as mount, pytest.raises(Invalid):
        mount.attach(str(place / "link"))
    assert mounts_of(place) == before


def test_a_clone_shows_the_same_files_but_no_later_mounts(place: Path) -> None:
    shared, target = directory(place / "shared"), directory(place / "target")
    with tmpfs() as mount, clone_mount(mount) as second:
        mount.attach(str(shared))
        (shared / "inner").mkdir()
        second.attach(str(target))
    with tmpfs() as third:
        third.attach(str(shared / "inner"))
    (shared / "inner/file").touch()
    assert os.listdir(target / "inner") == []


def test_clone_of_nothing_is_absent(place: Path) -> None:
    with pytest.raises(NotFound, match="cannot be mounted a second time"):
        clone(str(place / "none"))


def test_attributes_go_to_mounts_only(place: Path) -> None:
    with pytest.raises(Invalid, match="its mount attributes cannot be set"):
        restrict(str(place), RDONLY)


def test_without_the_capability_every_call_is_refused(place: Path) -> None:
    code = """
import sys
from imgfs.errors import NotPermitted
from imgfs.kernel.mountapi import RDONLY, FilesystemContext, clone, restrict
for call in (lambda: FilesystemContext("tmpfs", "here"), lambda: clone(sys.argv[1]), lambda: restrict("/", RDONLY)):
    try:
        call()
    except NotPermitted as error:
        print("CAP_SYS_ADMIN" in error.message)
"""
    assert powerless(code, place).split() == ["True"] * 3


def test_no_descriptor_is_left(place: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with tmpfs() as mount, clone_mount(mount):
        pass
    with pytest.raises(Unsupported):
        FilesystemContext("nosuchfs", "here")
    with FilesystemContext("overlay", "here") as context:
        context.set_path("upperdir", directory(place / "back\\slash"))
    assert len(os.listdir("/proc/self/fd")) == len(before)
