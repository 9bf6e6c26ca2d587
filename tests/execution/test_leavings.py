"""What a killed runtime leaves: processes in cgroups, the cgroups, and its directory with mounts in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.execution.cgroups import cgroup_name, kill_cgroups, oom_kills
from imgfs.execution.records.record import ContainerStatus
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.removal import discard_runtime, remove_leftovers
from imgfs.kernel.bind import bind
from tests.execution.test_records import made

ROOT = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """Return the hierarchies in which cgroups can be made."""
    places = [path.parent for path in (ROOT, *ROOT.iterdir()) for path in path.glob("cgroup.procs")]
    assert places, f"{ROOT}: no cgroups here; mount them"
    return places


@pytest.fixture
def key() -> Iterator[str]:
    """A container's key. Every hierarchy has a cgroup of that name with a child cgroup."""
    key = f"left-{os.urandom(4).hex()}"
    for place in hierarchies():
        (place / cgroup_name(key) / "inner").mkdir(parents=True)
    yield key
    kill_cgroups(key)


def test_processes_in_cgroups_end_and_the_cgroups_go(key: str) -> None:
    groups = [place / cgroup_name(key) for place in hierarchies()]
    with subprocess.Popen(["sleep", "100"]) as inside:
        entered = [group for group in groups if _enter(group / "inner", inside.pid)]
        assert entered
        kill_cgroups(key)
        assert inside.wait(10) == -9
    kill_cgroups(key)
    assert not [group for group in groups if group.exists()]
    assert oom_kills(key) == 0


def test_a_runtimes_directory_is_removed_with_its_mounts_but_not_the_mounted_files(tmp_path: Path) -> None:
    records = ContainerRecords(tmp_path / "state")
    record = made(records, "one", ContainerStatus(status="stopped"))
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "kept").write_text("kept")
    place = records.runtime_root / record.container().runtime_id
    (place / "mounted").mkdir(parents=True)
    record.rootfs.mkdir()
    bind(str(shown), str(place / "mounted"), trusted=True)
    bind(str(shown), str(record.rootfs), trusted=True)
    bind(str(shown), str(record.rootfs), trusted=True)
    remove_leftovers(records, record.container())
    assert not place.exists()
    discard_runtime(records, record, record.container())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert (shown / "kept").read_text() == "kept"


def _enter(group: Path, pid: int) -> bool:
    """Put a process into a cgroup. A v1 cpuset takes no process before its CPUs and memory nodes are set."""
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True
