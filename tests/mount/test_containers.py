"""containers/ and .imgfs/deleted/: the files of containers that have supervisors' records, and rmdir."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.execution.records.record import LOST, ContainerStatus, start_time
from imgfs.execution.records.records import ContainerRecords
from tests.mount.preparing import Workshop, workshop
from tests.mount.scene import error_of, refused, succeed, until
from tests.support.containers import fabricated, many, stopped, supervised
from tests.support.mounted import IMGFS, Mounted

RUNNING = ContainerStatus(status="running", pid=os.getpid(), start_time=0, started="2026-01-01T00:00:01Z")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("containers")) as made:
        yield made


@pytest.fixture
def records(shop: Workshop) -> ContainerRecords:
    return ContainerRecords(shop.mount.state)


def at(shop: Workshop, id: str) -> Path:
    """Return containers/<id>."""
    return shop.mount.path / "containers" / id


def deleted(shop: Workshop, id: str) -> Path:
    """Return .imgfs/deleted/containers/<id>."""
    return shop.mount.path / ".imgfs/deleted/containers" / id


def test_a_container_is_a_directory_of_facts(shop: Workshop, records: ContainerRecords) -> None:
    record = fabricated(records, "facts", stopped(3), snapshot="facts-key")
    directory = at(shop, "facts")
    assert "facts" in os.listdir(directory.parent)
    assert sorted(os.listdir(directory)) == ["config.json", "log", "pid", "rootfs", "state.json", "status"]
    state = json.loads((directory / "state.json").read_bytes())
    assert (state["id"], state["status"], state["exit_code"]) == ("facts", "stopped", 3)
    assert state["bundle"] == str(record.bundle)
    assert (directory / "config.json").read_bytes() == record.config.read_bytes()
    assert (directory / "status").read_text().startswith("exited with 3 at ")
    assert (directory / "pid").read_bytes() == b""
    assert os.readlink(directory / "rootfs") == "../../snapshots/active/facts-key/rootfs"
    for name in ("state.json", "status", "config.json"):
        assert os.stat(directory / name).st_size == len((directory / name).read_bytes())


def test_the_states_of_all_containers_are_one_unlisted_file(shop: Workshop, records: ContainerRecords) -> None:
    fabricated(records, "one-of-many", stopped(3))
    record = fabricated(records, "another", RUNNING)
    (fabricated(records, "damaged", stopped(3)).path / "status.json").write_text("{")
    top = at(shop, "_all").parent
    with supervised(record):
        every = {one["id"]: one for one in json.loads((top / "_all").read_bytes())}
        running = json.loads((top / "_running").read_bytes())
    assert every.keys() == set(os.listdir(top))
    assert every["one-of-many"] == json.loads((top / "one-of-many/state.json").read_bytes())
    assert "is damaged" in every["damaged"]["error"]
    assert [one["id"] for one in running if "error" not in one] == ["another"]
    os.rmdir(top / "damaged")


def test_only_the_owner_reads_what_may_be_secret(shop: Workshop, records: ContainerRecords) -> None:
    fabricated(records, "modes", stopped(0))
    names = ("state.json", "status", "pid", "config.json", "log")
    modes = {name: stat.S_IMODE(os.stat(at(shop, "modes") / name).st_mode) for name in names}
    assert modes == dict.fromkeys(names[:3], 0o444) | dict.fromkeys(names[3:], 0o400)
    assert {os.stat(at(shop, "modes") / name).st_uid for name in ("state.json", "log")} == {os.geteuid()}


def test_changes_by_supervisors_are_seen_at_once(shop: Workshop, records: ContainerRecords) -> None:
    record = fabricated(records, "changes", RUNNING)
    directory = at(shop, "changes")
    with supervised(record) as supervisor:
        assert (directory / "pid").read_text() == f"{os.getpid()}\n"
        before = os.stat(directory)
        assert (directory / "status").read_text() == f"running since {RUNNING.started} (pid {os.getpid()})\n"
        os.utime(record.path / "status.json", ns=(0, before.st_mtime_ns + 10**9))
        assert os.stat(directory).st_mtime_ns == before.st_mtime_ns + 10**9
        record.write_status(stopped(7))
        assert (directory / "status").read_text().startswith("exited with 7")
        assert (directory / "pid").read_bytes() == b""
        record.write_status(RUNNING)
        assert json.loads((directory / "state.json").read_bytes())["status"] == "running"
        supervisor.kill()
        supervisor.wait()
        assert json.loads((directory / "state.json").read_bytes())["reason"] == LOST


def test_a_log_grows_while_it_is_read(shop: Workshop, records: ContainerRecords) -> None:
    record = fabricated(records, "grows", RUNNING)
    log = at(shop, "grows") / "log"
    assert (log.read_bytes(), os.stat(log).st_size) == (b"", 0)
    record.log.write_bytes(b"first\n")
    with log.open("rb", buffering=0) as file, supervised(record):
        assert file.read(100) == b"first\n"
        assert file.read(100) == b""
        with record.log.open("ab") as more:
            more.write(b"second\n")
        assert os.fstat(file.fileno()).st_size == 13
        assert file.read(100) == b"second\n"
        os.replace(record.log, f"{record.log}.1")
        record.log.write_bytes(b"third\n")
        assert os.fstat(file.fileno()).st_size == 13
        assert not os.path.samestat(os.fstat(file.fileno()), os.stat(log))
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(f"{log}.1"))
    assert log.read_bytes() == b"third\n"


def test_tail_follows_a_log(shop: Workshop, records: ContainerRecords) -> None:
    record = fabricated(records, "tailed", RUNNING)
    record.log.write_bytes(b"one\n")
    log = at(shop, "tailed") / "log"
    with subprocess.Popen(["tail", "-s", "0.05", "-F", log], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tail:
        assert tail.stdout is not None
        assert tail.stdout.readline() == b"one\n"
        with record.log.open("ab") as more:
            more.write(b"two\n")
        assert tail.stdout.readline() == b"two\n"
        os.replace(record.log, f"{record.log}.1")
        record.log.write_bytes(b"three\n")
        assert tail.stdout.readline() == b"three\n"
        tail.kill()


def test_other_changes_are_refused(shop: Workshop, records: ContainerRecords) -> None:
    fabricated(records, "fixed", stopped(0))
    directory = at(shop, "fixed")
    with refused(errno.EPERM):
        os.mkdir(directory.parent / "new")
    with refused(errno.EPERM):
        os.rename(directory, directory.parent / "other")
    with refused(errno.EPERM):
        os.unlink(directory / "log")
    with refused(errno.EPERM):
        os.open(directory / "status", os.O_WRONLY)
    with refused(errno.ENOENT):
        os.stat(directory / "nothing")
    for name in ("none", ".runtime", ".new-x"):
        with refused(errno.ENOENT):
            os.stat(directory.parent / name)
        with refused(errno.ENOENT):
            os.rmdir(directory.parent / name)


def test_rmdir_deletes_an_ended_container_and_its_snapshot(shop: Workshop, records: ContainerRecords) -> None:
    rootfs = shop.prepare("ended", shop.base)
    (rootfs / "written").write_text("x")
    fabricated(records, "ended", stopped(4))
    assert (at(shop, "ended") / "rootfs/written").read_text() == "x"
    os.rmdir(at(shop, "ended"))
    assert "ended" not in os.listdir(at(shop, "ended").parent)
    assert "ended" not in os.listdir(shop.active("ended").parent)
    assert not records.find("ended").path.exists()
    kept = json.loads(deleted(shop, "ended").read_bytes())
    assert (kept["id"], kept["exit_code"], kept["image"]) == ("ended", 4, "registry.test/app:1")
    assert os.stat(deleted(shop, "ended")).st_size == len(deleted(shop, "ended").read_bytes())
    os.unlink(deleted(shop, "ended"))
    with refused(errno.ENOENT):
        os.stat(deleted(shop, "ended"))
    with refused(errno.ENOENT):
        os.rmdir(at(shop, "ended"))


def test_rmdir_of_a_running_container_is_busy_with_a_reason(shop: Workshop, records: ContainerRecords) -> None:
    record = fabricated(
        records, "runs", ContainerStatus(status="running", pid=os.getpid(), start_time=start_time(os.getpid()))
    )
    with supervised(record):
        with refused(errno.EBUSY):
            os.rmdir(at(shop, "runs"))
        assert "imgfs delete -f runs" in error_of(at(shop, "runs"))
    with subprocess.Popen(["sleep", "60"]) as left:
        record.write_status(ContainerStatus(status="running", pid=left.pid, start_time=start_time(left.pid)))
        with refused(errno.EBUSY):
            os.rmdir(at(shop, "runs"))
        left.kill()
    os.rmdir(at(shop, "runs"))
    assert json.loads(deleted(shop, "runs").read_bytes())["reason"] == LOST


def test_rmdir_with_a_used_snapshot_deletes_nothing_and_shows_the_reason(
    shop: Workshop, records: ContainerRecords
) -> None:
    rootfs = shop.prepare("used", shop.base)
    long_ago = time.time() - 60
    os.utime(fabricated(records, "used", stopped(0)).path / "status.json", (long_ago, long_ago))
    with (rootfs / "etc/os").open(), refused(errno.EBUSY):
        os.rmdir(at(shop, "used"))
    assert "in use" in error_of(at(shop, "used"))
    assert json.loads((at(shop, "used") / "state.json").read_bytes())["status"] == "stopped"
    with refused(errno.ENOENT):
        os.stat(deleted(shop, "used"))
    os.rmdir(at(shop, "used"))


def test_the_snapshot_of_a_running_container_is_in_use(shop: Workshop, records: ContainerRecords) -> None:
    shop.prepare("user-1", shop.base)
    record = fabricated(records, "user", RUNNING, snapshot="user-1")
    with supervised(record):
        with refused(errno.EBUSY):
            os.rmdir(shop.active("user-1"))
        assert "container user" in error_of(shop.active("user-1"))
        with refused(errno.EBUSY):
            os.rename(shop.active("user-1"), shop.at("committed"))
        record.write_status(stopped(0))
        os.rename(shop.active("user-1"), shop.at("committed"))
    os.rmdir(at(shop, "user"))
    assert (shop.at("committed") / "rootfs/etc/os").read_text() == "base\n"


def test_a_container_without_its_snapshot_can_be_deleted(shop: Workshop, records: ContainerRecords) -> None:
    fabricated(records, "alone", stopped(0))
    os.rmdir(at(shop, "alone"))
    assert deleted(shop, "alone").exists()


def test_garbage_collection_keeps_a_containers_layers_and_deletes_expired_final_statuses(
    shop: Workshop, records: ContainerRecords
) -> None:
    shop.prepare("kept", shop.base)
    fabricated(records, "kept", stopped(0), chain=str(shop.base))
    fabricated(records, "long-gone", stopped(0))
    os.rmdir(at(shop, "long-gone"))
    before = time.time() - 8 * 86400
    os.utime(records.deleted / "long-gone.json", (before, before))
    os.setxattr(shop.mount.path / ".imgfs", "user.imgfs.gc", b"all")
    report = json.loads((shop.mount.path / ".imgfs/gc/last").read_bytes())
    assert {"kind": "container", "id": "long-gone"}.items() <= report["removed"][-1].items()
    assert (shop.active("kept") / "rootfs/etc/os").read_text() == "base\n"
    os.rmdir(at(shop, "kept"))


def test_the_command_line_shows_the_same(shop: Workshop, records: ContainerRecords) -> None:
    record = fabricated(records, "commanded", RUNNING)
    record.log.write_bytes(b"hello\n")
    with supervised(record) as supervisor:
        assert "commanded" in shop.mount.run("ps", "-q").stdout.split()
        assert shop.mount.run("delete", "commanded").returncode == 7
        environment = os.environ | {"IMGFS_MOUNTPOINT": str(shop.mount.path)}
        with subprocess.Popen(
            [*IMGFS, "wait", "commanded"], stdout=subprocess.PIPE, text=True, env=environment
        ) as waiting:
            until(lambda: _waits_for_lock(waiting.pid))
            record.write_status(stopped(5))
            supervisor.kill()
            assert waiting.communicate(timeout=20)[0] == "5\n"
    assert shop.mount.run("logs", "-f", "commanded").stdout == "hello\n"
    done = shop.mount.run("delete", "commanded")
    assert (done.returncode, done.stdout) == (5, "5\n")
    done = shop.mount.run("wait", "commanded")
    assert (done.returncode, done.stdout) == (0, "5\n")


def _waits_for_lock(pid: int) -> bool:
    """Return whether the process waits for a lock, by the kernel's table of locks."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in lines)


def test_a_begun_deletion_is_finished_by_the_next_start(tmp_path: Path) -> None:
    with workshop(tmp_path) as shop:
        records = ContainerRecords(shop.mount.state)
        shop.prepare("begun", shop.base)
        records.keep_deleted(fabricated(records, "begun", stopped(6)))
        fabricated(records, "temporary", stopped(0), remove=True)
        fabricated(records, "stays", stopped(0))
        shop.mount.kill()
        shop.mount.start()
        until(lambda: os.listdir(shop.mount.path / "containers") == ["stays"])
        assert os.listdir(shop.active("begun").parent) == []
        assert json.loads(deleted(shop, "begun").read_bytes())["exit_code"] == 6
        assert deleted(shop, "temporary").exists()


def requests(mounted: Mounted, operation: str) -> int:
    """Return how many of these requests the kernel has sent."""
    text = (mounted.path / ".imgfs/metrics").read_text()
    found = re.search(rf'^imgfs_fuse_operation_seconds_count{{operation="{operation}"}} (\d+)$', text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_a_thousand_containers_are_listed_and_found(mounted: Mounted) -> None:
    many(ContainerRecords(mounted.state), 1000)
    containers = mounted.path / "containers"
    before = requests(mounted, "getxattr")
    assert len(succeed("ls", "-l", containers).splitlines()) == 1001
    assert requests(mounted, "getxattr") - before < 50  # after the kernel got EOPNOTSUPP for ACLs and labels
    with refused(errno.EOPNOTSUPP):
        os.getxattr(containers / "many-1", "system.posix_acl_access")
    with refused(errno.ENODATA):
        os.getxattr(containers / "many-1", "user.imgfs.error")
    assert json.loads((containers / "many-500/state.json").read_bytes())["id"] == "many-500"
