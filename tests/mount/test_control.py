""".imgfs/ and the mountpoint: the facts about the daemon, and the refused changes."""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from collections.abc import Callable, Iterator

import pytest

from imgfs import __version__
from imgfs.oci.digest import Digest
from tests.mount.scene import Scene, refused, serving, small, succeed
from tests.support.exposition import Metric, parse


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("control")) as made:
        yield made


def test_the_top_has_five_directories_and_is_private(scene: Scene) -> None:
    assert sorted(os.listdir(scene.mount.path)) == [".imgfs", "containers", "content", "images", "snapshots"]
    assert stat.S_IMODE(os.stat(scene.mount.path).st_mode) == 0o700


def test_facts_about_the_daemon_can_be_parsed(scene: Scene) -> None:
    control = scene.mount.path / ".imgfs"
    assert (control / "version").read_text() == f"{__version__}\n"
    assert tomllib.loads((control / "config").read_text())["platform"] == "linux/amd64"
    state = json.loads((control / "state.json").read_bytes())
    assert state["mountpoint"] == str(scene.mount.path)
    os.kill(state["pid"], 0)


def test_metrics_count_what_was_done(scene: Scene) -> None:
    before = metrics(scene)
    host = scene.registry.host
    made = small("counted")
    os.listdir(f"{scene.serve(made, 'counted')}/rootfs/")
    after = metrics(scene)
    grown = grown_by(before, after)
    assert grown("imgfs_registry_requests_total", host=host, kind="manifest") == 1
    assert grown("imgfs_registry_requests_total", host=host, kind="blob") == 2
    answers = {"host": host, "class": "2xx"}
    assert grown("imgfs_registry_answers_total", **answers) == 3
    size = len(made.document) + len(made.config) + len(made.layers[0].blob)
    assert grown("imgfs_registry_received_bytes_total", host=host) == size
    assert grown("imgfs_registry_source_bytes_total", host=host, source="registry") == size
    for name in ("first_byte", "request"):
        assert grown(f"imgfs_registry_{name}_seconds", "_count", host=host) == 3
    for name in ("retries", "timeouts", "throttled", "pauses"):
        assert after[f"imgfs_registry_{name}_total"].value(host=host) == 0
    assert after["imgfs_registry_inflight"].value(host=host) == 0
    assert grown("imgfs_names") == 1
    assert grown("imgfs_transfers_completed_total", direction="pull") == 2
    assert grown("imgfs_transfers_bytes_total", direction="pull") == size - len(made.document)
    assert after["imgfs_transfers_running"].value(direction="pull") == 0
    asked = [grown("imgfs_content_asked_total", kind="layer", outcome=one) for one in ("hit", "miss", "shared")]
    assert asked == [0, 1, 0]
    assert grown("imgfs_fuse_operation_seconds", "_count", operation="lookup") > 3
    assert grown("imgfs_wait_seconds", "_count") > 1
    assert after["imgfs_waiting"].value() == 1, "who reads the metrics waits for them"
    assert grown("imgfs_views_mounted") == 1


def test_metrics_tell_of_hits_ingests_garbage_and_the_process(scene: Scene) -> None:
    data = b"brought by hand"
    before = metrics(scene)
    digest = Digest.of(data)
    (scene.mount.content / "ingest/metrics").write_bytes(data)
    os.rename(scene.mount.content / "ingest/metrics", scene.blob(digest))
    assert scene.blob(digest).read_bytes() == data
    (scene.mount.content / "ingest/unfinished").write_bytes(data)
    writing = metrics(scene)
    os.unlink(scene.mount.content / "ingest/unfinished")
    os.setxattr(scene.mount.path / ".imgfs", "user.imgfs.gc", b"all")
    after = metrics(scene)
    grown = grown_by(before, after)
    assert grown("imgfs_content_asked_total", kind="blob", outcome="hit") == 1
    assert grown("imgfs_content_local_bytes_total", kind="blob") == len(data)
    assert grown("imgfs_fuse_read_bytes_total") > len(data)
    assert sum(writing["imgfs_ingests"].samples.values()) == 1
    assert [grown("imgfs_ingests_total", event=event) for event in ("started", "committed", "aborted")] == [2, 1, 1]
    assert grown("imgfs_ingests_committed_bytes_total") == len(data)
    assert grown("imgfs_gc_runs_total", mode="collect") == 1
    assert grown("imgfs_gc_removed_total", mode="collect", kind="blob") == 1
    assert grown("imgfs_gc_freed_bytes_total", mode="collect") > 0
    assert set(after["imgfs_store_bytes"].samples) == {
        ("", (("kind", kind),)) for kind in ("blobs", "layers", "unfinished")
    }
    assert writing["imgfs_store_bytes"].value(kind="blobs") > after["imgfs_store_bytes"].value(kind="blobs")
    assert after["process_resident_memory_bytes"].value() > 10 << 20
    assert grown("process_start_time_seconds") == 0
    assert grown("process_cpu_seconds_total") > 0


def test_counters_never_fall_and_all_have_a_word_of_help(scene: Scene) -> None:
    before = metrics(scene)
    os.listdir(f"{scene.serve(small('falling'), 'falling')}/rootfs/")
    after = metrics(scene)
    assert all(one.help.endswith(".") for one in after.values())
    for name, metric in before.items():
        if metric.kind != "gauge":
            assert all(after[name].samples[key] >= value for key, value in metric.samples.items())


def metrics(scene: Scene) -> dict[str, Metric]:
    return parse((scene.mount.path / ".imgfs/metrics").read_text())


def grown_by(before: dict[str, Metric], after: dict[str, Metric]) -> Callable[..., float]:
    """Return the growth of a sample. A missing sample counts as 0."""

    def grown(name: str, suffix: str = "", **labels: str) -> float:
        key = suffix, tuple(sorted(labels.items()))
        return after[name].samples[key] - (before[name].samples.get(key, 0) if name in before else 0)

    return grown


def test_the_log_tells_what_failed(scene: Scene) -> None:
    with refused(errno.ENOENT):
        os.stat(scene.name("missing-in-the-log"))
    assert "missing-in-the-log" in (scene.mount.path / ".imgfs/log").read_text()


def test_files_have_the_size_of_what_is_read(scene: Scene) -> None:
    for name in ("version", "config", "state.json"):
        path = scene.mount.path / ".imgfs" / name
        assert os.stat(path).st_size == len(path.read_bytes())


def test_nothing_is_made_or_removed_at_the_top(scene: Scene) -> None:
    for directory in (scene.mount.path, scene.mount.path / ".imgfs", scene.mount.snapshots):
        with refused(errno.EPERM):
            os.mkdir(directory / "new")
        with refused(errno.EPERM):
            os.open(directory / "new", os.O_CREAT | os.O_WRONLY)
        with refused(errno.EPERM):
            os.chmod(directory, 0o777)
    for name in ("images", "content", "snapshots", "containers", ".imgfs"):
        with refused(errno.EPERM):
            os.rmdir(scene.mount.path / name)
        with refused(errno.EPERM):
            os.rename(scene.mount.path / name, scene.mount.path / "renamed")
    with refused(errno.EPERM):
        os.unlink(scene.mount.path / ".imgfs/version")
    with refused(errno.EPERM):
        os.open(scene.mount.path / ".imgfs/config", os.O_WRONLY)


def test_walking_the_whole_tree_asks_nobody(scene: Scene) -> None:
    with scene.silence():
        succeed("ls", "-lR", scene.mount.path)
        succeed("find", scene.mount.path, "-ls")
        succeed("du", "-s", scene.mount.path)


def test_df_tells_of_the_state_directory(scene: Scene) -> None:
    own, behind = os.statvfs(scene.mount.path), os.statvfs(scene.mount.state)
    assert (own.f_blocks, own.f_frsize, own.f_namemax) == (behind.f_blocks, behind.f_frsize, 255)
