"""Checks of the host: each reports its finding and advice, on hosts of all kinds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.doctor import host
from imgfs.doctor.diagnosis import Diagnosis
from imgfs.execution.options import RuntimeProgram
from imgfs.kernel.probe import Capabilities, Capability

WORKS = Capability()
NOT = Capability("erofs: the kernel refuses it; load the module")


def program(directory: Path, name: str, mode: int = 0o755) -> Path:
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def test_the_device_is_there_and_opens(tmp_path: Path) -> None:
    assert host.fuse_device().grade == "ok"
    missing = host.fuse_device(str(tmp_path / "fuse"))
    assert (missing.grade, missing.what) == ("fail", "is missing")
    assert "modprobe fuse" in missing.cure
    (tmp_path / "fuse").touch()
    assert host.fuse_device(str(tmp_path / "fuse")).what == "is not the FUSE device"
    assert host.fuse_device("/dev/null").grade == "fail"


def test_fusermount_is_for_ordinary_users(tmp_path: Path) -> None:
    search = str(tmp_path)
    assert host.fusermount(is_root=True, search=search).grade == "ok"
    assert host.fusermount(is_root=False, search=search).cure == "install fuse3"
    path = program(tmp_path, "fusermount3")
    assert host.fusermount(is_root=False, search=search).grade == "fail"
    path.chmod(0o4755)
    assert host.fusermount(is_root=False, search=search).what == f"is {path}"


@pytest.mark.parametrize(
    ("release", "grade"),
    [("6.18.44-fc", "ok"), ("6.12.0", "ok"), ("6.11.9-arch", "warn"), ("4.19.0-21-amd64", "warn"), ("odd", "warn")],
)
def test_an_old_kernel_is_reported(release: str, grade: str) -> None:
    assert host.kernel(release).grade == grade


def test_the_mount_api_is_available() -> None:
    assert host.mount_api().grade == "ok"


@pytest.mark.parametrize(
    ("effective", "is_root", "grade"),
    [("000001ffffffffff", True, "ok"), ("00000000a80425fb", True, "warn"), ("0000000000000000", False, "ok")],
)
def test_capabilities_are_read(effective: str, is_root: bool, grade: str) -> None:
    status = f"Name:\tx\nCapInh:\t0000000000200000\nCapEff:\t{effective}\nCapBnd:\t000001ffffffffff\n"
    assert host.capabilities(status, is_root=is_root).grade == grade


def test_user_namespaces_may_be_forbidden(tmp_path: Path) -> None:
    assert host.user_namespaces(tmp_path).grade == "ok"  # a kernel without these limits
    (tmp_path / "user").mkdir()
    limit = tmp_path / "user/max_user_namespaces"
    limit.write_text("15000\n")
    assert host.user_namespaces(tmp_path).grade == "ok"
    limit.write_text("0\n")
    assert "max_user_namespaces is 0" in host.user_namespaces(tmp_path).what
    limit.write_text("x")
    assert host.user_namespaces(tmp_path).grade == "warn"


def test_mount_failures_are_reported_to_root_only() -> None:
    everything = list(host.views(Capabilities(WORKS, WORKS, WORKS, NOT), is_root=True))
    assert {one.grade for one in everything} == {"ok"}
    nothing = Capabilities(NOT, NOT, NOT, NOT)
    told = list(host.views(nothing, is_root=True))
    assert {one.grade for one in told} == {"warn"}
    assert (told[0].what, told[0].cure) == ("erofs: the kernel refuses it", "load the module")
    user = {one.subject: one.grade for one in host.views(nothing, is_root=False)}
    assert user.pop("fuse-overlayfs") == "warn"
    assert set(user.values()) == {"ok"}


def test_usable_runtimes_of_plugins_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    known = [RuntimeProgram("one", "imgfs-test-one"), RuntimeProgram("two", "imgfs-test-two")]
    told = host.runtimes(known, tmp_path)
    assert told.grade == "warn"
    assert "imgfs-test-one is not installed" in told.what
    assert "imgfs-test-two is not installed" in told.what
    assert host.runtimes([], tmp_path).what == "no plugin defines a runtime"
    program(tmp_path, "imgfs-test-two")
    assert host.runtimes(known, tmp_path) == Diagnosis("runtimes", "ok", "two")


def test_system_calls_are_filtered_where_there_is_a_profile() -> None:
    assert host.system_calls(None).grade == "warn"
    assert "/etc/x.json" in host.system_calls("/etc/x.json").what


def test_a_clock_before_the_release_is_wrong() -> None:
    assert host.clock().grade == "ok"
    assert host.clock(0.0).what.startswith("says 1970-01-01 00:00:00 UTC")


def test_variables_that_set_nothing_are_named() -> None:
    environment = {
        "IMGFS_ACCESS": "all",
        "IMGFS_MOUNTPOINT": "/m",
        "IMGFS_ACESS": "all",
        "HOME": "/",
        "IMGFS_PLUGINS": "",
    }
    assert [one.subject for one in host.variables(environment)] == ["$IMGFS_ACESS", "$IMGFS_PLUGINS"]


def test_a_tree_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    assert host.tree(str(tmp_path)).grade == "ok"
    gone = host.tree(str(tmp_path / "gone"))
    assert gone.grade == "fail"
    assert os.strerror(2) in gone.what
