"""`imgfs doctor`: a line for each thing, a cure for each that is not well, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from imgfs.cli import main

SUBJECTS = {
    "/dev/fuse", "fusermount3", "kernel", "mount API", "capabilities", "user namespaces", "state directory",
    "filesystem", "room", "sync", "holes", "extended attributes", "EROFS", "overlay", "overlay over EROFS",
    "fuse-overlayfs", "runtimes", "seccomp", "clock", "configuration", "plugins", "hosts_path",
}  # fmt: skip


def doctor(state: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "--state", str(state), *arguments])


def test_this_host_is_well_and_nothing_is_left(tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = doctor(state, "--format", "json")
    found = {one["subject"]: one for one in json.loads(done.stdout)}
    assert found.keys() >= SUBJECTS
    assert [subject for subject in SUBJECTS if found[subject]["grade"] == "fail"] == []
    failed = [one for one in found.values() if one["grade"] == "fail"]  # trees of others may be dead
    assert done.exit_code == (1 if failed else 0)
    assert all(one["cure"] for one in found.values() if one["grade"] != "ok")
    assert list(tmp_path.iterdir()) == []


def test_people_get_lines_and_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    lines = doctor(tmp_path).stdout.splitlines()
    place = lines.index(f"warn  state directory: {tmp_path} has mode 755: other users can read it")
    assert lines[place + 1] == f"      -> `chmod 700 {tmp_path}`"
    assert "ok    /dev/fuse: can be opened" in lines


def test_what_stops_a_mount_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "imgfs.toml").write_text('acces = "all"')
    done = doctor(tmp_path)
    assert done.exit_code == 1
    assert "FAIL  configuration: " in done.stdout
    assert "imgfs.toml:1: unknown option 'acces'" in done.stdout
    assert "doctor: failed checks: " in done.stderr
    assert "configuration" in done.stderr


def test_options_of_plugins_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "imgfs.toml").write_text("[plugins.compression.xz]\n\nmemory_mib = 'much'\n")
    done = doctor(tmp_path)
    assert f"FAIL  plugins: {tmp_path}/imgfs.toml:3: [plugins.compression.xz]: Expected `int`" in done.stdout
