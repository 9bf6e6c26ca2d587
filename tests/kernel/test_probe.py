"""What the probe reports where all mounts work, and where some do not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from imgfs.errors import StorageFailed
from imgfs.kernel.mountapi import FilesystemContext
from imgfs.kernel.mounts import unmount
from imgfs.kernel.overlay import mount_overlay
from imgfs.kernel.probe import Capabilities, Capability, probe
from tests.kernel.pieces import directory, mounts_of, powerless
from tests.support.programs import run

WORKS = Capability()


def test_on_a_disk_everything_works_and_nothing_is_left(place: Path) -> None:
    before, descriptors = mounts_of(place), len(os.listdir("/proc/self/fd"))
    found = probe(place)
    assert found == Capabilities(erofs=WORKS, overlay=WORKS, overlay_over_erofs=WORKS, fuse_overlayfs=WORKS)
    assert (mounts_of(place), len(os.listdir("/proc/self/fd"))) == (before, descriptors)
    assert os.listdir(place) == []


def test_state_on_an_overlay_carries_neither(place: Path) -> None:
    upper, work, state = (directory(place / name) for name in ("upper", "work", "state"))
    mount_overlay([str(directory(place / "lower"))], str(state), upper=upper, work=work, trusted=True)
    found = probe(state)
    assert not found.erofs
    assert found.erofs.reason.startswith(f"{state}/image.erofs: erofs is refused: ")
    assert "not on overlayfs" in found.erofs.reason
    assert "must not lie on overlayfs" in found.overlay.reason
    assert found.overlay_over_erofs == found.erofs
    assert os.listdir(state) == []


def test_state_in_memory_carries_overlays_only(place: Path) -> None:
    state = directory(place / "state")
    with FilesystemContext("tmpfs", "here") as context, context.create(0) as mount:
        mount.attach(str(state))
    found = probe(state)
    assert (bool(found.erofs), found.overlay, bool(found.overlay_over_erofs)) == (False, WORKS, False)
    assert "not on overlayfs or tmpfs" in found.erofs.reason


def test_the_probe_succeeds_on_a_full_disk(place: Path) -> None:
    state = directory(place / "state")
    run("mount", "-t", "tmpfs", "-o", "nr_inodes=3", "small", str(state))
    try:
        for number in range(2):
            (state / f"{number}").touch()
        assert probe(state).fuse_overlayfs
        assert sorted(os.listdir(state)) == ["0", "1"]
    finally:
        unmount(str(state), detach=True)


@pytest.mark.parametrize("is_known", [True, False])
def test_the_probe_succeeds_if_temporary_files_are_on_the_full_disk(
    place: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    state = directory(place / "state")
    run("mount", "-t", "tmpfs", "-o", "nr_inodes=2", "small", str(state))
    monkeypatch.setattr(tempfile, "tempdir", str(state) if is_known else None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(state)])
    try:
        (state / "0").touch()
        found = probe(state)
        assert (bool(found.erofs), found.overlay) == (False, WORKS)
        assert os.listdir(state) == ["0"]
    finally:
        unmount(str(state), detach=True)


def test_without_the_capability_the_reason_names_it(place: Path) -> None:
    code = """
import sys
from pathlib import Path
from imgfs.kernel.probe import probe
found = probe(Path(sys.argv[1]))
for capability in (found.erofs, found.overlay, found.overlay_over_erofs):
    print(bool(capability), "CAP_SYS_ADMIN" in capability.reason)
"""
    assert powerless(code, place).splitlines() == ["False True"] * 3


def test_missing_programs_are_reported_with_their_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert probe(place).fuse_overlayfs.reason == "fuse-overlayfs: is missing; install the package fuse-overlayfs"
    (place / "fuse-overlayfs").touch(mode=0o755)
    assert probe(place).fuse_overlayfs.reason == "fusermount3: is missing; install fuse3"


def test_a_missing_state_directory_is_storage_failed(place: Path) -> None:
    with pytest.raises(StorageFailed, match="none: No such file"):
        probe(place / "none")
