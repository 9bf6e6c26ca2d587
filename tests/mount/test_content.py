"""content/: one read-only file for each blob; opening it fetches it; it is complete and verified, or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.descriptor import OCI_CONFIG, OCI_MANIFEST
from imgfs.oci.digest import Digest
from imgfs.testing.build import Image, image, layer
from imgfs.testing.entries import File
from tests.mount.scene import Scene, error_of, refused, run, serving, small, succeed

BIG = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(40_000))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("content")) as made:
        yield made


def resolved(scene: Scene, mark: str) -> Image:
    """Return an image of which only the manifest is local."""
    made = small(mark)
    os.stat(scene.serve(made, mark))
    return made


def layer_blob(scene: Scene, made: Image) -> Path:
    """Return the path of the blob of the first layer."""
    return scene.blob(made.layers[0].digest)


def test_what_is_mentioned_can_be_opened_and_is_listed_once_it_is_stored(scene: Scene) -> None:
    made = resolved(scene, "mentioned")
    path = layer_blob(scene, made)
    assert path.name not in os.listdir(path.parent)
    with scene.requests("blob"):
        assert path.read_bytes() == made.layers[0].blob
    assert path.name in os.listdir(path.parent)
    with scene.silence():
        assert path.read_bytes() == made.layers[0].blob


def test_size_and_mode_are_right_before_the_first_byte_is_here(scene: Scene) -> None:
    made = resolved(scene, "sized")
    with scene.silence():
        found = os.stat(layer_blob(scene, made))
    assert (found.st_size, found.st_blocks) == (len(made.layers[0].blob), 0)
    assert stat.S_IMODE(found.st_mode) == 0o444
    assert succeed("du", "-k", layer_blob(scene, made)).split()[0] == "0"


def test_blocks_and_mtime_tell_of_the_stored_blob(scene: Scene) -> None:
    made = image([layer([File("big", BIG)], "none")])
    os.stat(scene.serve(made, "stored"))
    before = time.time()
    layer_blob(scene, made).read_bytes()
    found = os.stat(layer_blob(scene, made))
    assert found.st_blocks * 512 >= found.st_size
    assert before - 1 <= found.st_mtime <= time.time() + 1


def test_large_blobs_are_read_exactly_at_any_offset(scene: Scene) -> None:
    made = image([layer([File("big", BIG)])])
    os.stat(scene.serve(made, "large"))
    blob = made.layers[0].blob
    with layer_blob(scene, made).open("rb", buffering=0) as file:
        for offset, size in ((0, 1), (len(blob) - 1, 10), (1 << 20, 4097), (len(blob), 1), (len(blob) + 5, 1)):
            assert os.pread(file.fileno(), size, offset) == blob[offset : offset + size]
    assert succeed("sha256sum", layer_blob(scene, made)).split()[0] == made.layers[0].digest.hex


def test_rm_deletes_here_and_now(scene: Scene) -> None:
    made = resolved(scene, "deleted")
    path = layer_blob(scene, made)
    path.read_bytes()
    with scene.silence(), path.open("rb", buffering=0) as file:
        succeed("rm", "-f", path)
        assert path.name not in os.listdir(path.parent)
        assert os.stat(path).st_blocks == 0
        with refused(errno.ENOENT):
            os.unlink(path)
        assert file.read() == made.layers[0].blob
    with scene.requests("blob"):
        assert path.read_bytes() == made.layers[0].blob


def test_rm_of_what_was_never_here_is_absent(scene: Scene) -> None:
    made = resolved(scene, "absent")
    with scene.silence(), refused(errno.ENOENT):
        os.unlink(layer_blob(scene, made))


def test_rm_of_a_manifest_lets_its_name_fetch_it_again(scene: Scene) -> None:
    made = resolved(scene, "manifest")
    os.unlink(scene.blob(made.digest))
    with scene.requests("manifest"):
        assert (scene.name("manifest") / "manifest.json").read_bytes() == made.document


def test_a_blob_takes_no_change(scene: Scene) -> None:
    made = resolved(scene, "immutable")
    path = layer_blob(scene, made)
    path.read_bytes()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        with refused(errno.EPERM):
            os.open(path, flags)
    with refused(errno.EPERM):
        os.truncate(path, 0)
    with refused(errno.EPERM):
        os.chmod(path, 0o600)
    with refused(errno.EPERM):
        os.chown(path, 1, 1)
    with refused(errno.EPERM):
        os.utime(path, (0, 0))
    with refused(errno.EPERM):
        os.rename(path, path.with_name("renamed"))
    with refused(errno.EPERM):
        os.rename(path, scene.images / "renamed")
    with refused(errno.EPERM):
        os.link(path, path.with_name("linked"))
    assert run("mv", path, path.with_name("renamed")).returncode != 0
    assert path.read_bytes() == made.layers[0].blob


def test_an_unstored_blob_takes_no_change_and_fetches_nothing(scene: Scene) -> None:
    made = resolved(scene, "unwritten")
    with scene.silence(), refused(errno.EPERM):
        os.open(layer_blob(scene, made), os.O_WRONLY)


def test_nothing_is_made_in_content(scene: Scene) -> None:
    directory = scene.mount.content
    for name in ("file", Digest.of(b"to be created")):
        with scene.silence():
            with refused(errno.EPERM):
                os.open(directory / name, os.O_CREAT | os.O_WRONLY)
            with refused(errno.EPERM):
                os.mkdir(directory / name)
            with refused(errno.EPERM):
                os.symlink("x", directory / name)


def test_facts_are_told(scene: Scene) -> None:
    made = resolved(scene, "facts")
    path = layer_blob(scene, made)
    descriptor = made.layers[0]
    facts = {
        "size": str(len(descriptor.blob)),
        "media_type": descriptor.media_type(docker=False),
        "source": f"{scene.registry.host}/facts",
        "resident": "0",
    }
    with scene.silence():
        assert _facts(path) == facts
    path.read_bytes()
    facts |= {"resident": facts["size"], "verified": "blob"}
    assert _facts(path) == facts
    succeed("ls", "-l", path.parent)  # the kernel has the file's attributes from the listing now
    assert _facts(path) == facts


def _facts(path: Path) -> dict[str, str]:
    return {name.removeprefix("user.imgfs."): os.getxattr(path, name).decode() for name in os.listxattr(path)}


def test_media_types_of_manifest_and_config_are_told(scene: Scene) -> None:
    made = resolved(scene, "types")
    config = Digest.of(made.config)
    assert _facts(scene.blob(made.digest))["media_type"] == OCI_MANIFEST
    assert _facts(scene.blob(config))["media_type"] == OCI_CONFIG


def test_facts_that_do_not_hold_are_no_data(scene: Scene) -> None:
    made = resolved(scene, "nodata")
    path = layer_blob(scene, made)
    for name in ("error", "verified", "nonsense"):
        with refused(errno.ENODATA):
            os.getxattr(path, f"user.imgfs.{name}")
    with refused(errno.EPERM):
        os.setxattr(path, "user.imgfs.size", b"1")
    with refused(errno.EPERM):
        os.removexattr(path, "user.imgfs.size")


@pytest.mark.parametrize(
    "name",
    ["x", "sha256:", "sha256:12", "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha256:" + "g" * 64, "sha256-" + "0" * 64],
)
def test_malformed_digests_are_not_there(scene: Scene, name: str) -> None:
    with scene.silence(), refused(errno.ENOENT):
        os.open(scene.mount.content / name, os.O_RDONLY)


def test_a_digest_in_upper_case_is_not_the_blob(scene: Scene) -> None:
    made = resolved(scene, "upper")
    path = layer_blob(scene, made)
    with scene.silence(), refused(errno.ENOENT):
        os.stat(path.with_name(f"sha256:{made.layers[0].digest.hex.upper()}"))


def test_an_unmentioned_digest_is_absent_and_nobody_is_asked(scene: Scene) -> None:
    digest = scene.registry.add_blob(b"at the registry, but in no image")
    with scene.silence(), refused(errno.ENOENT):
        os.stat(scene.blob(digest))


def test_one_blob_in_two_images_is_fetched_once_and_tells_both_places(scene: Scene) -> None:
    shared = layer([File("shared", b"by two images")])
    images = [image([shared, layer([File("own", b"%d" % number)])]) for number in range(2)]
    for number, made in enumerate(images):
        os.stat(scene.serve(made, f"shared{number}"))
    assert _facts(scene.blob(shared.digest))["source"].count(scene.registry.host) == 2
    with scene.requests(*["blob"] * 5):
        for number in range(2):
            assert (scene.name(f"shared{number}") / "rootfs/shared").read_bytes() == b"by two images"


def test_blobs_survive_a_remount(scene: Scene) -> None:
    made = resolved(scene, "remounted")
    path = layer_blob(scene, made)
    path.read_bytes()
    before = os.stat(path)
    facts = _facts(path)
    scene.mount.stop()
    scene.mount.start()
    with scene.silence():
        assert path.read_bytes() == made.layers[0].blob
        after = os.stat(path)
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
        assert _facts(path) == facts
        assert error_of(path) == ""
