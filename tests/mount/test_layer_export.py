"""layer.tar: a snapshot's own changes as a layer of an image, made while it is read."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgfs.oci.digest import chain_ids
from imgfs.testing.build import AMD64, BuiltLayer, Image, image, layer
from tests.mount.preparing import BASE, Workshop, digest_of, workshop
from tests.mount.scene import error_of, refused, run, small, succeed
from tests.support.trees import compare_trees, snapshot_tree

BIG = 3 << 20


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("export")) as made:
        yield made


def change(root: Path) -> None:
    """One change of every kind that a layer can hold."""
    (root / "etc/os").write_text("changed\n")
    os.unlink(root / "etc/gone")
    (root / "big").write_bytes(random.Random(1).randbytes(BIG))
    os.truncate(root / "big", BIG + 5)
    shutil.rmtree(root / "srv")
    (root / "srv").mkdir()
    (root / "srv/new").write_text("new\n")
    os.link(root / "srv/new", root / "srv/twin")
    os.symlink("../etc/os", root / "srv/link")
    os.mkfifo(root / "srv/fifo")
    os.mknod(root / "srv/null", 0o600 | 0o020000, os.makedev(1, 3))
    os.chown(root / "data/big", 70_000, 3_000_000)
    os.setxattr(root / "data", "user.mark", b"=\n\0")
    (root / ("n" * 200)).write_text("long name")
    (root / os.fsdecode(b"bytes-\xff")).write_text("no text")
    os.utime(root / "data", ns=(0, 1_234_567_890_123_456_789))
    os.chmod(root, 0o751)


@pytest.fixture(scope="module")
def changed(shop: Workshop) -> Path:
    """The directory of a committed snapshot with changes of every kind."""
    change(shop.prepare("changing", shop.base))
    shop.commit("changing", "changed")
    return shop.at("changed")


def serve(shop: Workshop, layers: list[BuiltLayer], name: str) -> Path:
    made: Image = image(layers, platform=AMD64)
    return Path(os.path.realpath(shop.scene.serve(made, name) / "rootfs", strict=True))


def test_tar_lists_it(shop: Workshop, changed: Path) -> None:
    assert "layer.tar" not in os.listdir(changed)
    listed = succeed("sh", "-c", f"cat '{changed}/layer.tar' | tar t").split()
    assert listed[:2] == ["./", "big"]
    assert {"etc/.wh.gone", "etc/os", "srv/.wh..wh..opq", "srv/new", "data/big"} <= set(listed)
    assert "etc/gone" not in listed
    succeed("tar", "-tf", changed / "layer.tar")


def test_every_tool_reads_the_same_bytes(changed: Path, tmp_path: Path) -> None:
    layer_tar = changed / "layer.tar"
    digest = digest_of(layer_tar)
    for command in ("cat {} > {}", "cp {} {}", "dd if={} of={} bs=77777 status=none", "cp --sparse=always {} {}"):
        succeed("sh", "-c", command.format(layer_tar, tmp_path / "copy"))
        assert digest_of(tmp_path / "copy") == digest, command
    shutil.copyfile(layer_tar, tmp_path / "python")
    assert digest_of(tmp_path / "python") == digest
    assert succeed("sha256sum", layer_tar).split()[0] == digest.removeprefix("sha256:")


def test_the_digest_is_the_same_at_any_time(shop: Workshop, changed: Path) -> None:
    digest = digest_of(changed / "layer.tar")
    assert digest_of(changed / "layer.tar") == digest
    shop.mount.stop()
    shop.mount.start()
    assert digest_of(changed / "layer.tar") == digest
    os.listdir(changed / "rootfs")
    assert digest_of(changed / "layer.tar") == digest


def test_the_layer_of_an_image_is_what_its_diff_id_names(shop: Workshop) -> None:
    for chain, diff_id in zip(chain_ids(BASE.diff_ids), BASE.diff_ids, strict=True):
        assert digest_of(shop.at(chain) / "layer.tar") == diff_id
        assert os.stat(shop.at(chain) / "layer.tar").st_size > 0


def test_as_the_layer_of_an_image_it_shows_the_same_tree(shop: Workshop, changed: Path) -> None:
    made = layer((changed / "layer.tar").read_bytes())
    assert made.diff_id == digest_of(changed / "layer.tar")
    shown = serve(shop, [*BASE.layers, made], "pushed")
    assert compare_trees(snapshot_tree(changed / "rootfs"), snapshot_tree(shown)) == []


def test_a_chain_of_snapshots_is_an_image_of_as_many_layers(shop: Workshop, changed: Path) -> None:
    root = shop.prepare("more", "changed")
    shutil.rmtree(root / "srv")
    (root / "etc/gone").write_text("back again\n")
    os.rename(root / "big", root / "bigger")
    os.unlink(root / "link")
    (root / "link").mkdir()
    shop.commit("more", "more")
    layers = [layer((shop.at(name) / "layer.tar").read_bytes(), "zstd") for name in ("changed", "more")]
    shown = serve(shop, [*BASE.layers, *layers], "chain")
    assert compare_trees(snapshot_tree(shop.at("more") / "rootfs"), snapshot_tree(shown)) == []


def test_without_a_parent_it_is_the_whole_tree(shop: Workshop) -> None:
    root = shop.prepare("alone")
    (root / "bin").mkdir()
    (root / "bin/tool").write_text("#!\n")
    shop.commit("alone", "alone")
    shown = serve(shop, [layer((shop.at("alone") / "layer.tar").read_bytes())], "alone")
    assert compare_trees(snapshot_tree(shop.at("alone") / "rootfs"), snapshot_tree(shown)) == []


def test_nothing_changed_is_a_layer_too(shop: Workshop) -> None:
    shop.make("unchanged", shop.base)
    with tarfile.open(fileobj=io.BytesIO((shop.at("unchanged") / "layer.tar").read_bytes())) as found:
        assert found.getnames() == ["."]
    shop.prepare("never", shop.base)
    assert succeed("tar", "-tf", shop.active("never") / "layer.tar") == "./\n"
    shown = serve(shop, [*BASE.layers, layer((shop.at("unchanged") / "layer.tar").read_bytes())], "unchanged")
    assert compare_trees(snapshot_tree(shop.at(shop.base) / "rootfs"), snapshot_tree(shown)) == []
    assert compare_trees(snapshot_tree(shop.at("unchanged") / "rootfs"), snapshot_tree(shown)) == []


def test_any_offset_can_be_read(changed: Path) -> None:
    whole = (changed / "layer.tar").read_bytes()
    assert len(whole) > BIG
    chance = random.Random(2)
    file = os.open(changed / "layer.tar", os.O_RDONLY)
    try:
        offsets = [
            0,
            1,
            len(whole) - 1,
            len(whole),
            len(whole) + 5000,
            0,
            *(chance.randrange(len(whole)) for _ in range(12)),
        ]
        for offset in offsets:
            size = chance.choice([1, 511, 4096, 200_000])
            assert os.pread(file, size, offset) == whole[offset : offset + size]
    finally:
        os.close(file)


def test_two_readers_at_once(changed: Path) -> None:
    digest = digest_of(changed / "layer.tar")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(digest_of, [changed / "layer.tar"] * 4)) == {digest}
    with (changed / "layer.tar").open("rb", buffering=0) as one, (changed / "layer.tar").open("rb", buffering=0) as two:
        for _ in range(20):
            assert one.read(10_000) == two.read(10_000)


def test_two_threads_share_one_open_file(changed: Path) -> None:
    whole = (changed / "layer.tar").read_bytes()
    file = os.open(changed / "layer.tar", os.O_RDONLY)
    try:
        with ThreadPoolExecutor(2) as pool:
            pieces = list(pool.map(lambda offset: os.pread(file, 100_000, offset), range(0, 1_000_000, 100_000)))
    finally:
        os.close(file)
    assert b"".join(pieces) == whole[:1_000_000]


def test_commit_and_removal_during_an_export_are_busy(shop: Workshop) -> None:
    root = shop.prepare("exporting", shop.base)
    (root / "file").write_bytes(bytes(BIG))
    with (shop.active("exporting") / "layer.tar").open("rb", buffering=0) as file:
        file.read(1000)
        for change in (lambda: shop.commit("exporting", "exported"), lambda: shop.active("exporting").rmdir()):
            with refused(errno.EBUSY):
                change()
    shop.commit("exporting", "exported")
    with (shop.at("exported") / "layer.tar").open("rb", buffering=0) as file:
        file.read(1000)
        with refused(errno.EBUSY):
            shop.at("exported").rmdir()
    shop.at("exported").rmdir()


def test_what_changes_meanwhile_is_busy_and_told(shop: Workshop) -> None:
    root = shop.prepare("moving", shop.base)
    (root / "file").write_bytes(random.Random(3).randbytes(BIG))
    with (shop.active("moving") / "layer.tar").open("rb", buffering=0) as file:
        file.read(1000)
        (root / "file").write_bytes(b"short")
        with refused(errno.EBUSY):
            while file.read(1 << 20):
                pass
    assert "changed during the export" in error_of(shop.active("moving"))
    assert len((shop.active("moving") / "layer.tar").read_bytes()) < BIG
    assert error_of(shop.active("moving")) == ""


def test_what_no_layer_can_hold_is_told(shop: Workshop) -> None:
    root = shop.prepare("odd")
    (root / ".wh.name").write_text("x")
    with refused(errno.EOPNOTSUPP):
        (shop.active("odd") / "layer.tar").read_bytes()
    assert "rename it" in error_of(shop.active("odd"))
    os.rename(root / ".wh.name", root / "name")
    assert succeed("tar", "-tf", shop.active("odd") / "layer.tar").split() == ["./", "name"]


def test_it_cannot_be_written_or_removed(shop: Workshop, changed: Path) -> None:
    layer_tar = changed / "layer.tar"
    for attempt in (
        lambda: os.open(layer_tar, os.O_WRONLY),
        lambda: os.truncate(layer_tar, 0),
        lambda: os.unlink(layer_tar),
    ):
        with refused(errno.EPERM):
            attempt()
    assert run("mv", layer_tar, shop.at("x.tar")).returncode == 1
    with refused(errno.ENOENT):
        os.stat(shop.at(f"{BASE.digest}@linux-amd64") / "parent/parent/layer.tar")


def test_its_size_is_right_before_the_first_byte(shop: Workshop, changed: Path) -> None:
    assert os.stat(changed / "layer.tar").st_size == len((changed / "layer.tar").read_bytes())
    root = shop.prepare("growing", shop.base)
    for _ in range(2):
        (root / os.urandom(4).hex()).write_bytes(os.urandom(5000))
        layer_tar = shop.active("growing") / "layer.tar"
        assert os.stat(layer_tar).st_size == len(layer_tar.read_bytes())


def test_the_layer_of_an_image_that_is_not_here_is_fetched_and_whole(shop: Workshop, tmp_path: Path) -> None:
    made = small("distant")
    os.listdir(shop.scene.serve(made, "distant") / "rootfs/")
    shop.mount.stop()
    shutil.rmtree(shop.mount.state / "layers/sha256" / made.diff_ids[0].hex)
    shop.mount.start()
    layer_tar = shop.at(chain_ids(made.diff_ids)[0]) / "layer.tar"
    with shop.scene.requests("blob"):
        shutil.copyfile(layer_tar, tmp_path / "copy")
    assert digest_of(tmp_path / "copy") == made.diff_ids[0]
