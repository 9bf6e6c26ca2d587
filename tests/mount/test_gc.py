"""Garbage collection through the mount: referenced content stays, and the rest frees disk space."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import chain_ids
from imgfs.testing.build import image
from tests.mount.scene import Scene, marked_layer, refused, serving, small, until


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with serving(tmp_path) as made:
        yield made


def pulled(scene: Scene, name: str) -> Path:
    path = scene.serve(small(name), name)
    (path / "pull").read_bytes()
    return path


def tars(scene: Scene) -> int:
    return len(list(scene.mount.state.glob("layers/sha256/*/tar")))


def gc(scene: Scene, *options: str) -> dict[str, list[dict[str, str]]]:
    done = scene.mount.run("gc", "--mountpoint", str(scene.mount.path), "--format", "json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_lost_its_name_goes_and_the_rest_stays(scene: Scene) -> None:
    kept, dropped = pulled(scene, "kept"), pulled(scene, "dropped")
    before = tars(scene)
    dropped.unlink()
    foretold = gc(scene, "--dry-run")
    assert tars(scene) == before
    assert {item["kind"] for item in foretold["removed"]} >= {"layer", "blob", "snapshot"}
    done = gc(scene)
    assert sorted(item["id"] for item in done["removed"]) == sorted(item["id"] for item in foretold["removed"])
    assert tars(scene) < before
    with scene.requests():
        assert (kept / "rootfs/mark").read_text() == "kept/0\n"
    assert gc(scene)["removed"] == []


def test_a_snapshot_holds_the_chain_below_it(scene: Scene) -> None:
    made = image([marked_layer("below")])
    name = scene.serve(made, "below")
    (name / "pull").read_bytes()
    chain = next(path for path in scene.mount.snapshots.iterdir() if path.name != "active")
    active = scene.mount.snapshots / "active/mine"
    active.mkdir()
    (active / "parent").symlink_to(f"../../{chain.name}")
    (active / "rootfs/own").write_text("1")
    name.unlink()
    assert not [item for item in gc(scene)["removed"] if item["kind"] in ("layer", "snapshot")]
    scene.mount.stop()
    scene.mount.start()
    assert sorted(os.listdir(active / "rootfs")) == ["0", "mark", "own"]


def test_a_name_comes_back_after_its_content_went(scene: Scene) -> None:
    pulled(scene, "other")
    name = pulled(scene, "again")
    name.unlink()
    assert gc(scene)["removed"]
    assert (name / "rootfs/mark").read_text() == "again/0\n"


def test_without_any_name_it_refuses_unless_told(scene: Scene) -> None:
    pulled(scene, "only").unlink()
    done = scene.mount.run("gc", "--mountpoint", str(scene.mount.path))
    assert done.returncode == 4
    assert "refused" in done.stderr
    assert tars(scene)
    assert gc(scene, "--all")["removed"]
    assert tars(scene) == 0


def test_a_lease_holds_what_its_links_lead_to_until_it_expires(scene: Scene) -> None:
    pulled(scene, "other")
    name = pulled(scene, "leased")
    digest = os.readlink(name).rpartition("/")[2]
    lease = scene.mount.path / ".imgfs/leases/mine"
    lease.mkdir()
    (lease / "image").symlink_to(f"../../../content/{digest}")
    assert os.readlink(lease / "image") == f"../../../content/{digest}"
    name.unlink()
    assert not gc(scene)["removed"]
    scene.mount.stop()
    scene.mount.start()
    assert (os.listdir(lease.parent), os.listdir(lease)) == (["mine"], ["image"])
    assert not gc(scene)["removed"]
    with refused(errno.EINVAL):
        os.setxattr(lease, "user.imgfs.expires", b"soon")
    with refused(errno.EINVAL):
        os.setxattr(lease, "user.imgfs.expires", b"2999-01-31T12:00:00Z")
    os.setxattr(lease, "user.imgfs.expires", b"2199-01-31T12:00:00Z")
    assert os.getxattr(lease, "user.imgfs.expires") == b"2199-01-31T12:00:00Z"
    assert not gc(scene)["removed"]
    os.setxattr(lease, "user.imgfs.expires", b"1")
    assert not lease.exists()
    assert {item["kind"] for item in gc(scene)["removed"]} >= {"layer", "blob", "snapshot"}


def test_a_lease_that_somebody_has_open_does_not_expire_and_can_be_removed(scene: Scene) -> None:
    pulled(scene, "other")
    name = pulled(scene, "held")
    lease = scene.mount.path / ".imgfs/leases/mine"
    lease.mkdir()
    (lease / "image").symlink_to(f"../../../content/{os.readlink(name).rpartition('/')[2]}")
    name.unlink()
    holder = os.open(lease, os.O_RDONLY | os.O_DIRECTORY)
    os.setxattr(lease, "user.imgfs.expires", b"1")
    assert os.listdir(lease) == ["image"]
    assert not gc(scene)["removed"]
    os.close(holder)
    until(lambda: not lease.exists())
    assert gc(scene)["removed"]
    lease.mkdir()
    holder = os.open(lease, os.O_RDONLY | os.O_DIRECTORY)
    lease.rmdir()
    os.close(holder)


def test_leases_are_made_changed_and_removed_as_files_are(scene: Scene) -> None:
    lease = scene.mount.path / ".imgfs/leases/mine"
    lease.mkdir()
    with refused(errno.EEXIST):
        lease.mkdir()
    with refused(errno.EINVAL):
        (lease / "x").symlink_to("/etc/passwd")
    (lease / "x").symlink_to("../../../images/some:name")
    with refused(errno.EEXIST):
        (lease / "x").symlink_to("../../../images/other:name")
    (lease / "x").unlink()
    with refused(errno.ENOENT):
        (lease / "x").unlink()
    with refused(errno.ENODATA):
        os.removexattr(lease, "user.imgfs.expires")
    lease.rmdir()
    with refused(errno.ENOENT):
        lease.rmdir()


def test_the_doors_are_read_only(scene: Scene) -> None:
    control = scene.mount.path / ".imgfs"
    with refused(errno.EPERM):
        os.open(control / "gc/last", os.O_WRONLY)
    with refused(errno.EPERM):
        os.setxattr(control, "user.imgfs.gc", b"everything")
    assert sorted(os.listdir(control / "gc")) == ["dry-run", "dry-run-all", "last"]


def test_a_chain_that_was_collected_and_is_here_again_is_found_at_once(scene: Scene) -> None:
    """The kernel may still cache the first object."""
    pulled(scene, "kept")
    made = small("back")
    name = scene.serve(made, "back")
    chain = scene.mount.snapshots / chain_ids(made.diff_ids)[-1]
    for _ in range(3):
        (name / "pull").read_bytes()
        assert sorted(os.listdir(chain)) == ["diff", "rootfs"]
        name.unlink()
        os.setxattr(scene.mount.path / ".imgfs", "user.imgfs.gc", b"collect")
        assert chain.name not in os.listdir(scene.mount.snapshots)
        with refused(errno.ENOENT):
            os.lstat(chain / "rootfs")
        (name / "pull").read_bytes()
        assert (chain / "diff/mark").read_text() == "back/0\n"
    assert (chain / "rootfs/mark").read_text() == "back/0\n"
