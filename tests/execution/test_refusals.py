"""A container that cannot be run is refused with a readable error, and leaves nothing."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from imgfs.errors import AlreadyExists, ImgfsError, Invalid, NotFound, Unsupported
from imgfs.execution.bundle.overrides import Overrides
from imgfs.execution.options import RuntimeProgram
from imgfs.execution.records.record import InstalledRuntime
from imgfs.execution.runtimes.choice import accepted, installed, remember_refusal
from imgfs.execution.start import check_platform
from imgfs.oci.platform import Platform
from tests.execution.box import PATIENCE, Box
from tests.support.mounted import IMGFS


@pytest.mark.parametrize(
    ("image", "wish", "error", "told"),
    [
        ("silent", Overrides(), Invalid, "silent: has neither Entrypoint nor Cmd"),
        ("stranger", Overrides(), NotFound, "user 'stranger': is not in the image's /etc/passwd"),
        ("box", Overrides(user="root:strangers"), NotFound, "group 'strangers': is not in the image's /etc/group"),
        ("foreign", Overrides(arguments=("true",)), Unsupported, "foreign: is for linux/arm64/v8, and this machine is"),
        ("lost", Overrides(), Invalid, "working directory: .*etc/passwd.* is not a directory in the image"),
        ("box", Overrides(working_dir="/dev/../bin/sh"), Invalid, "working directory: 'bin/sh' is not a directory"),
        ("box", Overrides(working_dir="/" + "x" * 300), Invalid, "File name too long"),
        ("nul", Overrides(), Invalid, "a NUL in an argument, variable"),
        ("box", Overrides(arguments=("a\0",)), Invalid, "a name or a value contains a NUL"),
    ],
)
def test_image_or_override_that_cannot_be_run(
    box: Box, image: str, wish: Overrides, error: type[ImgfsError], told: str
) -> None:
    with pytest.raises(error, match=told):
        box.start(image, wish=wish, id="one")
    box.assert_nothing_stays("one")


@pytest.mark.parametrize(("os_name", "helps"), [("linux", True), ("windows", False)])
def test_an_emulator_is_suggested_for_another_machine_and_not_for_another_system(os_name: str, helps: bool) -> None:
    with pytest.raises(Unsupported, match=f"app: is for {os_name}/mips, .*get another platform of it") as raised:
        check_platform(Platform(os=os_name, architecture="mips"), "app")
    assert ("emulator" in str(raised.value)) is helps


@pytest.mark.parametrize("id", ["", "..", "a/b", ".new-a", "-a", "a b", "x" * 129, "a\n", "é"])
def test_a_malformed_id_is_refused(box: Box, id: str) -> None:
    done = box.run("--name", id, "box")
    assert (done.returncode, b"expected up to 128 letters" in done.stderr) == (125, True)
    box.assert_nothing_stays()


@pytest.mark.parametrize("before", [(), ("unshare", "--uts")], ids=["by the starter", "by itself"])
def test_a_low_descriptor_limit_is_reported_before_the_start(box: Box, before: tuple[str, ...]) -> None:
    box.start("box", "sleep", "100", id="runs")
    box.ended(box.start("box", "true", id="ended"))
    known = sorted(path.name for path in box.records.directory.iterdir())
    for limit in (8, 12, 14, 63):
        for words in (("run", "box"), ("run", "-d", "box"), ("start", "ended"), ("exec", "runs", "true")):
            command = ["prlimit", f"--nofile={limit}:{limit}", *before, *IMGFS, *words]
            done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
            assert (done.returncode, done.stdout) == (125, b"")
            told = f"starting a program needs 64 open files; the limit is {limit} open files; raise it (`ulimit -n`"
            assert told in done.stderr.decode()
    assert sorted(path.name for path in box.records.directory.iterdir()) == known


def test_a_program_gets_no_higher_descriptor_limit_than_its_caller(box: Box) -> None:
    box.start("box", "sleep", "100", id="runs")
    for limit, words in itertools.product((64, 2000), (("run", "--rm", "box"), ("exec", "runs"))):
        command = ["prlimit", f"--nofile={limit}:{limit}", *IMGFS, *words, "sh", "-c", "ulimit -n; ulimit -Hn"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE, env=box.environment)
        most = min(limit, 1024)
        assert (done.returncode, done.stdout.decode()) == (0, f"{most}\n{most}\n"), done.stderr


def test_an_id_in_use_is_refused(box: Box) -> None:
    box.start("box", "sleep", "100", id="two")
    before = box.snapshots()
    with pytest.raises(AlreadyExists, match="container two: exists already"):
        box.start("box", "true", id="two")
    assert box.snapshots() == before


def program(path: Path) -> InstalledRuntime:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return InstalledRuntime(path.name, str(path))


def test_runtimes_are_the_installed_ones_in_order_or_the_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    first, other = program(tmp_path / "zz-first"), program(tmp_path / "zz-other")
    known = [
        RuntimeProgram("zz-missing", "zz-missing"),
        RuntimeProgram(first.name, first.name),
        RuntimeProgram(other.name, other.name),
    ]
    assert installed(known, "") == [first, other]
    assert installed(known, other.name) == [other]
    assert installed(known, other.path) == [other]
    for wanted in ("zz-missing", "/nowhere/zz"):
        with pytest.raises(NotFound, match=r"no OCI runtime: .*not installed; install crun or runc"):
            installed(known, wanted)


def test_a_refusal_is_remembered_until_the_runtime_or_the_boot_changes(tmp_path: Path) -> None:
    first, other = program(tmp_path / "first"), program(tmp_path / "other")
    remember_refusal(first, "no such cgroup", tmp_path)
    assert accepted([first, other], tmp_path) == [other]
    assert accepted([first], tmp_path) == [first]
    os.utime(first.path, ns=(1, 1))
    assert accepted([first, other], tmp_path) == [first, other]
    remember_refusal(first, "no such cgroup", tmp_path)
    (tmp_path / "refused.json").write_text((tmp_path / "refused.json").read_text().replace('"boot":"', '"boot":"x'))
    assert accepted([first, other], tmp_path) == [first, other]
