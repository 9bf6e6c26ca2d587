"""Find copies of a mount, in this mount namespace and in others."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.elsewhere import mounted_elsewhere
from imgfs.kernel.mountapi import FilesystemContext
from imgfs.kernel.mounts import mount_at, unmount
from tests.kernel.pieces import directory
from tests.mount.scene import succeed


@pytest.fixture
def mounted(place: Path) -> Path:
    """A tmpfs on a shared mount, which propagates later mounts to its peers and slaves."""
    above = directory(place / "above")
    with FilesystemContext("tmpfs", "above") as context, context.create(0) as mount:
        mount.attach(str(above))
    succeed("mount", "--make-shared", above)
    with FilesystemContext("tmpfs", "here") as context, context.create(0) as mount:
        mount.attach(str(directory(above / "mounted")))
    return above / "mounted"


def is_elsewhere(path: Path) -> bool:
    mount = mount_at(str(path))
    assert mount is not None
    return mounted_elsewhere([mount]) == [mount]


@contextmanager
def namespace(propagation: str, root: Path | None = None) -> Generator[None]:
    """A process in its own mount namespace, copied from this one, with `root` as its root directory."""
    inside = "from os import chdir, chroot; import sys; sys.argv[1:] and (chroot(sys.argv[1]), chdir('/')); "
    code = inside + "print(flush=True); sys.stdin.read()"
    command = ["unshare", "-m", "--propagation", propagation, "python3", "-c", code, *([str(root)] if root else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield


def test_a_single_mount_has_no_copy(mounted: Path) -> None:
    assert not is_elsewhere(mounted)
    assert mounted_elsewhere([]) == []


def test_a_bind_counts_as_a_copy(mounted: Path, place: Path) -> None:
    succeed("mount", "--bind", mounted, directory(place / "bind"))
    assert is_elsewhere(mounted)
    unmount(str(place / "bind"))
    assert not is_elsewhere(mounted)


@pytest.mark.parametrize(("propagation", "outlasts"), [("private", True), ("slave", False), ("shared", False)])
def test_a_copy_in_another_namespace_counts_unless_unmounts_propagate(
    mounted: Path, propagation: str, outlasts: bool
) -> None:
    with namespace(propagation):
        assert is_elsewhere(mounted) is outlasts
    assert not is_elsewhere(mounted)


def test_a_root_directory_in_another_namespace_is_found(mounted: Path) -> None:
    with namespace("private", mounted):
        assert is_elsewhere(mounted)
