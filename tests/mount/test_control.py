""".imgfs/ and the mountpoint: what the daemon tells about itself, and what cannot be done to it."""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from collections.abc import Iterator

import pytest

from imgfs import __version__
from tests.mount.scene import Scene, refused, serving, small, succeed


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("control")) as made:
        yield made


def test_the_top_has_four_directories_and_is_private(scene: Scene) -> None:
    assert sorted(os.listdir(scene.mount.path)) == [".imgfs", "content", "images", "snapshots"]
    assert stat.S_IMODE(os.stat(scene.mount.path).st_mode) == 0o700


def test_facts_about_the_daemon_can_be_parsed(scene: Scene) -> None:
    control = scene.mount.path / ".imgfs"
    assert (control / "version").read_text() == f"{__version__}\n"
    assert tomllib.loads((control / "config").read_text())["platform"] == "linux/amd64"
    state = json.loads((control / "state.json").read_bytes())
    assert state["mountpoint"] == str(scene.mount.path)
    os.kill(state["pid"], 0)


def test_metrics_count_what_was_done(scene: Scene) -> None:
    before = _metrics(scene)
    os.listdir(f"{scene.serve(small('counted'), 'counted')}/rootfs/")
    after = _metrics(scene)
    requests = 'imgfs_registry_requests_total{{host="{}",kind="{}"}}'
    for kind, count in (("manifest", 1), ("blob", 2)):
        name = requests.format(scene.registry.host, kind)
        assert after[name] == before.get(name, 0) + count
    received = f'imgfs_registry_received_bytes_total{{host="{scene.registry.host}"}}'
    assert after[received] > before.get(received, 0)
    assert after[f'imgfs_registry_retries_total{{host="{scene.registry.host}"}}'] == 0
    assert after["imgfs_names"] == before["imgfs_names"] + 1
    assert after["imgfs_transfers_running"] == 0


def _metrics(scene: Scene) -> dict[str, int]:
    lines = (scene.mount.path / ".imgfs/metrics").read_text().splitlines()
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines if not line.startswith("#"))}


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
    for name in ("images", "content", "snapshots", ".imgfs"):
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
