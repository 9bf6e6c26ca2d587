"""Images match their digests, and imgfs, skopeo and umoci can read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgfs.oci.descriptor import DOCKER_MANIFEST, OCI_MANIFEST, layer_compression
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, Manifest, parse_config, parse_document
from imgfs.oci.platform import choose
from imgfs.testing import samples
from imgfs.testing.images import (
    AMD64,
    ARM64,
    Compression,
    File,
    Image,
    attestation,
    busybox_image,
    image,
    index,
    layer,
    oddities_image,
)
from imgfs.testing.registry import FakeRegistry
from tests.support.programs import run

COMPRESSIONS: tuple[Compression, ...] = ("gzip", "zstd", "none")


class Recorder:
    """A registry that records the pushed objects in order."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def add_blob(self, data: bytes, /) -> Digest:
        self.added.append(Digest.of(data))
        return Digest.of(data)

    def add_manifest(self, repository: str, tag: str | None, data: bytes, media_type: str, /) -> Digest:
        self.added.append(f"{repository}:{tag} {media_type}")
        return Digest.of(data)


def small(docker: bool = False) -> Image:
    return image([layer([File("f", compression.encode())], compression) for compression in COMPRESSIONS], docker=docker)


@pytest.mark.parametrize("docker", [False, True])
def test_manifest_and_config_describe_every_blob(docker: bool) -> None:
    built = small(docker=docker)
    manifest = parse_document(built.document, built.media_type)
    assert isinstance(manifest, Manifest)
    assert manifest.media_type == (DOCKER_MANIFEST if docker else OCI_MANIFEST)
    assert {one.digest: one.size for one in manifest.children} == {key: len(data) for key, data in built.blobs.items()}
    assert [layer_compression(one.media_type) for one in manifest.layers] == list(COMPRESSIONS)
    config = parse_config(built.config)
    assert (config.platform, list(config.diff_ids)) == (AMD64, built.diff_ids)
    assert [Digest.of(one.tar) for one in built.layers] == built.diff_ids


def test_images_are_the_same_bytes_every_time() -> None:
    assert oddities_image().digest == oddities_image().digest
    assert busybox_image().digest == busybox_image().digest


def test_the_caller_sets_config_and_annotations() -> None:
    annotated = layer([File("f")], annotations={"layer.note": "1"})
    built = image([annotated], config={"config": {"Cmd": ["/bin/ls"]}}, annotations={"image.note": "2"})
    manifest = parse_document(built.document)
    assert isinstance(manifest, Manifest)
    assert json.loads(built.config)["config"] == {"Cmd": ["/bin/ls"]}
    assert (manifest.annotations, manifest.layers[0].annotations) == ({"image.note": "2"}, {"layer.note": "1"})


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_offers_platforms_and_lists_attestations(docker: bool) -> None:
    amd64, arm64 = small(docker=docker), image(small().layers, platform=ARM64, docker=docker)
    several = index([attestation(amd64), amd64, arm64], docker=docker, annotations={"index.note": "3"})
    parsed = parse_document(several.document, several.media_type)
    assert isinstance(parsed, ImageIndex)
    assert [one.digest for one in parsed.manifests] == [one.digest for one in several.images]
    assert [str(one.platform) for one in parsed.manifests] == ["unknown/unknown", "linux/amd64", "linux/arm64/v8"]
    assert choose(ARM64, [one.platform for one in parsed.manifests]) == 2
    assert parsed.annotations == {"index.note": "3"}


def test_a_layout_is_read_by_skopeo(tmp_path: Path) -> None:
    built = oddities_image()
    built.write_layout(tmp_path, "odd")
    inspected = json.loads(run("skopeo", "inspect", f"oci:{tmp_path}:odd"))
    assert inspected["Digest"] == built.digest
    assert inspected["Layers"] == [one.digest for one in built.layers]


def test_a_layout_is_extended_and_a_tag_moves(tmp_path: Path) -> None:
    first, second = small(), busybox_image()
    first.write_layout(tmp_path, "kept")
    first.write_layout(tmp_path, "moved")
    second.write_layout(tmp_path, "moved")
    index([first, second]).write_layout(tmp_path, "both")
    assert sorted(run("umoci", "list", "--layout", tmp_path).split()) == [b"both", b"kept", b"moved"]
    assert run("skopeo", "inspect", "--raw", f"oci:{tmp_path}:kept") == first.document
    assert run("skopeo", "inspect", "--raw", f"oci:{tmp_path}:moved") == second.document


def test_blobs_are_pushed_before_images_and_images_before_their_index() -> None:
    built = small()
    several, registry = index([built]), Recorder()
    assert several.add_to(registry, "app", "1") == several.digest
    last = [f"app:None {built.media_type}", f"app:1 {several.media_type}"]
    assert registry.added == [*built.blobs, *last]


def test_the_registry_in_memory_takes_images() -> None:
    several = index([small(), attestation(small())])
    with FakeRegistry() as registry:
        assert several.add_to(registry, "app", "1") == several.digest


def test_the_oddities_come_in_every_compression_with_an_empty_layer() -> None:
    layers = oddities_image().layers
    assert {one.compression for one in layers} == set(COMPRESSIONS)
    assert bytes(1024) in [one.tar for one in layers]
    assert {one.compression for one in oddities_image(samples.Oddities(zstd=False)).layers} == {"gzip", "none"}


def test_without_busybox_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "BUSYBOX", (Path("/nowhere"),))
    with pytest.raises(samples.NotFound, match="install busybox-static"):
        busybox_image()
