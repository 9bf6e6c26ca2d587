"""A rootfs in a real mount, pulled from a real registry, is the same as what other unpackers make of the image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.testing.images import (
    AMD64,
    ARM64,
    BuiltIndex,
    Compression,
    Dir,
    Entry,
    File,
    Format,
    Hardlink,
    Image,
    Oddities,
    SparseFile,
    Symlink,
    attestation,
    busybox_image,
    image,
    index,
    layer,
    layer_tar,
    oddities_image,
)
from tests.layers.tars import END, member, pax
from tests.support import oracles
from tests.support.mounted import Mounted
from tests.support.programs import run
from tests.support.servers import DockerRegistry, Upload, docker_registry, skopeo_push
from tests.support.trees import Ignore, Node, compare_trees, directory_mtimes, snapshot_tree

ROOT_MTIME = directory_mtimes("upper layers change the root and do not say when: unpackers say now", [b""])
PLAIN: list[Entry] = [
    Dir("", mtime_ns=1_500_000_000_000_000_000),
    Dir("d", mode=0o710, uid=7, gid=8),
    File("d/file", b"content\n" * 999, mode=0o4711, uid=1000, gid=1001),
    Symlink("d/link", "../" + "t" * 90),
    Hardlink("second", "d/file"),
    File("empty"),
]
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Scene:
    """A registry, and a mount that pulls from it."""

    registry: DockerRegistry
    mounted: Mounted

    def rootfs(self, name: str) -> str:
        """Return the real path of the rootfs of `name`."""
        return os.path.realpath(self.mounted.rootfs(f"{self.registry.host}/{name}"), strict=True)

    def tree(self, name: str) -> dict[bytes, Node]:
        """Return the tree of the rootfs of `name`, read through the mount."""
        return snapshot_tree(self.rootfs(name))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One registry and one mount for all images of this file. Each image has its own repository."""
    directory = tmp_path_factory.mktemp("oracles")
    with docker_registry(directory / "registry") as registry, Mounted(directory) as mounted:
        mounted.start()
        yield Scene(registry, mounted)


def umoci_tree(built: Image, directory: Path) -> dict[bytes, Node]:
    """Unpack an image with umoci and return its tree."""
    built.write_layout(directory / "umoci", "it")
    return snapshot_tree(oracles.umoci_unpack(directory / "umoci", "it", directory / "unpacked"))


def push(scene: Scene, built: Image | BuiltIndex, directory: Path, repository: str) -> None:
    """Push an image with skopeo."""
    built.write_layout(directory / "layout", "it")
    skopeo_push(directory / "layout", "it", scene.registry.host, repository)


def upload(scene: Scene, built: Image | BuiltIndex, repository: str) -> None:
    """Push an image without conversion, so that its media types stay."""
    built.add_to(Upload(scene.registry.host, repository), repository, "it")


def check(expected: dict[bytes, Node], actual: dict[bytes, Node], ignores: Sequence[Ignore]) -> None:
    """Assert that both trees are equal and have the same paths."""
    assert compare_trees(expected, actual, ignores) == []
    assert expected.keys() == actual.keys()


@pytest.mark.parametrize("docker", [False, True])
def test_oddities_are_what_umoci_unpacks(scene: Scene, tmp_path: Path, docker: bool) -> None:
    built = oddities_image(oracles.UMOCI, docker=docker)
    upload(scene, built, f"odd/umoci-{int(docker)}")
    plain = oddities_image(oracles.UMOCI)
    ignores = [*oracles.UMOCI_IGNORES, ROOT_MTIME]
    check(umoci_tree(plain, tmp_path), scene.tree(f"odd/umoci-{int(docker)}:it"), ignores)


@pytest.mark.parametrize(
    ("snapshotter", "oddities", "ignores"),
    [
        ("native", oracles.CONTAINERD_NATIVE, oracles.CONTAINERD_NATIVE_IGNORES),
        ("overlayfs", oracles.CONTAINERD_OVERLAYFS, oracles.CONTAINERD_OVERLAYFS_IGNORES),
    ],
)
def test_oddities_with_zstd_are_what_containerd_applies(
    scene: Scene,
    tmp_path: Path,
    snapshotter: oracles.Snapshotter,
    oddities: Oddities,
    ignores: tuple[Ignore, ...],
) -> None:
    push(scene, oddities_image(oddities), tmp_path, f"odd/{snapshotter}")
    with oracles.ctr_unpack(tmp_path / "layout", "it", tmp_path / "ctr", snapshotter) as rootfs:
        check(snapshot_tree(rootfs), scene.tree(f"odd/{snapshotter}:it"), ignores)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("format", ["pax", "gnu", "ustar"])
def test_each_format_in_each_compression(
    scene: Scene, tmp_path: Path, format: Format, compression: Compression
) -> None:
    push(scene, image([layer(PLAIN, compression, format=format)]), tmp_path, f"plain/{format}-{compression}")
    expected = umoci_tree(image([layer(PLAIN, "gzip", format=format)]), tmp_path)
    check(expected, scene.tree(f"plain/{format}-{compression}:it"), [])


def test_an_empty_pax_value_deletes_a_field_and_keeps_an_attribute(scene: Scene, tmp_path: Path) -> None:
    """containerd keeps an extended attribute whose record is empty, as GNU tar does. umoci drops it.

    imgfs follows containerd. GNU tar writes this very record for a file whose attribute is empty, so dropping it would
    lose the attribute.
    """
    key = b"SCHILY.xattr.user."
    data = pax((key + b"empty", b""), (key + b"full", b"v")) + member(b"file", data=b"x")
    data += pax((b"path", b""), (b"size", b""), (b"uid", b"")) + member(b"fields", data=b"xyz", uid=7)
    data += pax((b"linkpath", b"")) + member(b"link", b"2", link=b"file", mode=0o777) + END
    built = image([layer(data)])
    push(scene, built, tmp_path, "pax/empty")
    shown = scene.tree("pax/empty:it")
    assert shown[b"file"].xattrs == {b"user.empty": b"", b"user.full": b"v"}
    with oracles.ctr_unpack(tmp_path / "layout", "it", tmp_path / "ctr") as rootfs:
        check(snapshot_tree(rootfs), shown, [ROOT_MTIME])
    by_umoci = umoci_tree(built, tmp_path)
    assert by_umoci[b"file"].xattrs == {b"user.full": b"v"}
    for path in (b"fields", b"link"):
        assert by_umoci[path] == shown[path]


def test_empty_layers_change_nothing(scene: Scene, tmp_path: Path) -> None:
    built = image([layer([]), layer(PLAIN), layer([], "none"), layer(b"", "none"), layer([], "zstd")])
    upload(scene, built, "empty/some")
    check(umoci_tree(image([layer(PLAIN)]), tmp_path), scene.tree("empty/some:it"), [])


@pytest.mark.parametrize(("name", "built"), [("none", image([])), ("one", image([layer([])]))])
def test_image_of_nothing_is_an_empty_directory(scene: Scene, tmp_path: Path, name: str, built: Image) -> None:
    upload(scene, built, f"nothing/{name}")
    actual = scene.tree(f"nothing/{name}:it")
    check(umoci_tree(built, tmp_path), actual, [ROOT_MTIME])
    assert list(actual) == [b""]


def test_gnu_sparse_files_are_what_gnu_tar_extracts(scene: Scene, tmp_path: Path) -> None:
    many = tuple((at * 8192, b"%04d" % at * 128) for at in range(70))
    entries = [
        Dir("", mtime_ns=0),
        SparseFile("many", MEBIBYTE, many, "gnu"),
        SparseFile("hole", 5 * MEBIBYTE, (), "gnu"),
        SparseFile("tail", 3 * MEBIBYTE + 7, ((0, b"head" * 128), (3 * MEBIBYTE, b"7 bytes")), "gnu"),
        SparseFile("pax-0.1", MEBIBYTE, ((8192, b"inside" * 512),), "pax-0.1"),
        SparseFile("pax-1.0", 64 * MEBIBYTE, ((40 * MEBIBYTE, b"middle" * 512),)),
    ]
    upload(scene, image([layer(entries)]), "sparse/all")
    (tmp_path / "layer.tar").write_bytes(layer_tar(entries))
    (tmp_path / "extracted").mkdir(mode=0o755)
    run("tar", "--numeric-owner", "-xpf", tmp_path / "layer.tar", "-C", tmp_path / "extracted")
    expected = snapshot_tree(tmp_path / "extracted")
    check(expected, scene.tree("sparse/all:it"), [])
    assert expected[b"tail"].size == 3 * MEBIBYTE + 7


def test_reads_across_holes_are_right(scene: Scene) -> None:
    extents = ((4096, b"a" * 512), (MEBIBYTE - 512, b"b" * 1024), (9 * MEBIBYTE, b"c" * 512))
    sparse = SparseFile("file", 10 * MEBIBYTE, extents)
    upload(scene, image([layer([sparse])]), "sparse/holes")
    path = Path(scene.rootfs("sparse/holes:it"), "file")
    with path.open("rb", buffering=0) as file:
        for start, length in (
            (0, 5000),
            (4607, 2),
            (MEBIBYTE - 600, 1300),
            (9 * MEBIBYTE - 1, 600),
            (0, 10 * MEBIBYTE),
        ):
            assert os.pread(file.fileno(), length, start) == sparse.content[start : start + length]
        assert os.pread(file.fileno(), 10, 10 * MEBIBYTE) == b""


@pytest.mark.parametrize("docker", [False, True])
def test_index_shows_each_platform_as_its_own_image(scene: Scene, tmp_path: Path, docker: bool) -> None:
    ours = busybox_image(docker=docker)
    theirs = image([layer([*PLAIN, File("arm", b"64")])], platform=ARM64, docker=docker)
    members = [theirs, ours] if docker else [theirs, ours, attestation(ours)]
    upload(scene, index(members, docker=docker), f"index/{int(docker)}")
    (tmp_path / "arm").mkdir()
    check(umoci_tree(busybox_image(), tmp_path), scene.tree(f"index/{int(docker)}:it"), [ROOT_MTIME])
    platforms = scene.mounted.image(f"{scene.registry.host}/index/{int(docker)}:it") / "platforms"
    assert sorted(os.listdir(platforms)) == ["linux-amd64", "linux-arm64-v8"]
    other = snapshot_tree(os.path.realpath(platforms / "linux-arm64-v8/rootfs", strict=True))
    check(umoci_tree(image([layer([*PLAIN, File("arm", b"64")])], platform=AMD64), tmp_path / "arm"), other, [])


def test_documents_and_blobs_are_the_exact_bytes(scene: Scene, tmp_path: Path) -> None:
    built = oddities_image(oracles.UMOCI)
    push(scene, index([built]), tmp_path, "exact")
    directory = scene.mounted.image(f"{scene.registry.host}/exact:it")
    assert (directory / "index.json").read_bytes() == index([built]).document
    assert (directory / "manifest.json").read_bytes() == built.document
    assert (directory / "config.json").read_bytes() == built.config
    for number, one in enumerate(built.layers):
        assert (directory / "layers" / str(number)).read_bytes() == one.blob
