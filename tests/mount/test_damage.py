"""A state directory that was damaged: what can be had again is, and nothing wrong is served to its end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from imgfs.oci.digest import Digest
from imgfs.testing.images import File, image, index, layer
from imgfs.testing.registry import FakeRegistry
from tests.mount.preparing import unmount
from tests.mount.scene import until
from tests.support.mounted import Mounted

MADE = image([layer([File("etc/a", b"a" * 3000)]), layer([File("etc/b", b"b\n")])])
PAIR = index([MADE])


def cut(path: Path, size: int) -> None:
    os.chmod(path, 0o600)
    os.truncate(path, size)


def blob(mounted: Mounted, digest: str) -> Path:
    return mounted.state / "blobs/sha256" / digest[7:9] / digest[7:]


def test_a_cut_layer_is_fetched_again(mounted: Mounted, registry: FakeRegistry) -> None:
    MADE.add_to(registry, "a", "1")
    name = f"{registry.host}/a:1"
    assert mounted.run("pull", name).returncode == 0
    mounted.stop()
    cut(mounted.state / "layers/sha256" / MADE.layers[0].diff_id[7:] / "tar", 1024)
    registry.reset()
    mounted.start()
    assert (mounted.rootfs(name) / "etc/a").read_bytes() == b"a" * 3000
    assert registry.requests("blob") == 1
    assert "damaged layer set aside" in mounted.log()


def test_a_cut_blob_is_never_served_and_is_fetched_again(mounted: Mounted, registry: FakeRegistry) -> None:
    MADE.add_to(registry, "a", "1")
    layers = mounted.image(f"{registry.host}/a:1") / "layers"
    assert mounted.run("pull", f"{registry.host}/a:1").returncode == 0
    assert (layers / "0").read_bytes() == MADE.layers[0].blob
    mounted.stop()
    cut(blob(mounted, MADE.layers[0].digest), 10)
    mounted.start()
    assert (layers / "0").read_bytes() == MADE.layers[0].blob


def test_damaged_documents_are_fetched_again(mounted: Mounted, registry: FakeRegistry) -> None:
    PAIR.add_to(registry, "a", "1")
    name = f"{registry.host}/a:1"
    assert mounted.run("pull", name).returncode == 0
    mounted.stop()
    for document in (PAIR.document, MADE.document, MADE.config):
        path = blob(mounted, f"sha256:{_sha256(document)}")
        os.chmod(path, 0o600)
        path.write_bytes(document[:-1] + b"?")
    mounted.start()
    assert mounted.run("pull", name).returncode == 0
    assert (mounted.image(name) / "index.json").read_bytes() == PAIR.document
    assert (mounted.rootfs(name) / "etc/b").read_bytes() == b"b\n"


def test_a_blob_removed_from_under_the_daemon_is_fetched_again(mounted: Mounted, registry: FakeRegistry) -> None:
    MADE.add_to(registry, "a", "1")
    config = mounted.image(f"{registry.host}/a:1") / "config.json"
    assert config.read_bytes() == MADE.config
    blob(mounted, f"sha256:{_sha256(MADE.config)}").unlink()
    assert config.read_bytes() == MADE.config


def test_a_full_disk_harms_nobody_who_needs_no_space(tmp_path: Path, registry: FakeRegistry) -> None:
    MADE.add_to(registry, "a", "1")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True)
    try:
        with Mounted(tmp_path) as mount:
            mount.state = disk / "state"
            mount.start()
            assert mount.run("pull", f"{registry.host}/a:1").returncode == 0
            with (disk / "filler").open("wb") as filler:
                fill(filler.fileno())
            registry.add_blob(b"x")
            image([layer([File("big", os.urandom(1 << 20))])]).add_to(registry, "big", "1")
            assert mount.run("pull", f"{registry.host}/big:1").returncode == 8
            assert mount.run("pull", f"{registry.host}/nothing:1").returncode == 3
            assert (mount.rootfs(f"{registry.host}/a:1") / "etc/b").read_bytes() == b"b\n"
            (disk / "filler").unlink()
            until(lambda: mount.run("pull", f"{registry.host}/big:1").returncode == 0)
            assert (mount.rootfs(f"{registry.host}/big:1") / "big").stat().st_size == 1 << 20
    finally:
        unmount(disk)


def fill(file: int) -> None:
    try:
        while os.write(file, bytes(4096)):
            pass
    except OSError:
        return


def test_a_foreign_filesystem_is_not_ours_to_unmount(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        with Mounted(tmp_path / "other") as mount:
            (tmp_path / "other").mkdir()
            done = mount.run("umount", str(tmp_path))
            assert done.returncode == 4
            assert "is not a mount of imgfs" in done.stderr
            assert mount.run("mount", str(tmp_path), "--state", str(tmp_path.with_name("state"))).returncode == 7
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def _sha256(data: bytes) -> str:
    return Digest.of(data).hex
