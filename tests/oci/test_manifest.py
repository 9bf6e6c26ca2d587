"""Manifests, indexes and configs: their values, and hostile input."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import ImgfsError, Malformed, TooLarge, Unsupported
from imgfs.oci import manifest as room
from imgfs.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    SIZE_MAX,
    Descriptor,
    layer_compression,
    refuse_foreign,
)
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import (
    CONFIG_SIZE_MAX,
    JSON_DEPTH_MAX,
    LAYERS_MAX,
    MANIFEST_SIZE_MAX,
    ImageIndex,
    Manifest,
    decode_json,
    parse_config,
    parse_document,
)
from imgfs.oci.platform import Platform
from imgfs.testing.images import AMD64, ARM64, File, image, index, layer

D = Digest.of(b"x")
BLOB: dict[str, Any] = {"mediaType": f"{OCI_LAYER}+gzip", "digest": D, "size": 1}
CONFIG: dict[str, Any] = {"mediaType": OCI_CONFIG, "digest": D, "size": 2}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": CONFIG, "layers": [BLOB]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [{**BLOB, "mediaType": OCI_MANIFEST}]}


def parse(document: dict[str, Any], media_type: str = "") -> Manifest | ImageIndex:
    return parse_document(json.dumps(document).encode(), media_type)


def test_a_manifest_has_its_config_and_layers_base_first() -> None:
    made = image([layer([File("a")]), layer([File("b")], "zstd")], annotations={"k": "v"})
    found = parse_document(made.document, OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert [one.digest for one in found.layers] == [one.digest for one in made.layers]
    assert [one.size for one in found.layers] == [len(one.blob) for one in made.layers]
    assert found.children == (found.config, *found.layers)
    assert (found.config.digest, found.annotations) == (Digest.of(made.config), {"k": "v"})


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_has_its_platforms(docker: bool) -> None:
    made = index([image([], platform=one, docker=docker) for one in (AMD64, ARM64)], docker=docker)
    found = parse_document(made.document)
    assert isinstance(found, ImageIndex)
    assert [one.platform for one in found.children] == [AMD64, ARM64]
    assert found.media_type == (DOCKER_INDEX if docker else OCI_INDEX)


@pytest.mark.parametrize(
    ("document", "said", "kind"),
    [
        (MANIFEST, "", OCI_MANIFEST),
        (MANIFEST, "application/json", OCI_MANIFEST),
        (MANIFEST, f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
        (MANIFEST | {"mediaType": DOCKER_MANIFEST}, "application/octet-stream", DOCKER_MANIFEST),
        (INDEX, "", OCI_INDEX),
        (INDEX, DOCKER_INDEX, DOCKER_INDEX),
        (INDEX | {"manifests": []}, "", OCI_INDEX),
        (MANIFEST | {"manifests": []}, "", OCI_MANIFEST),
    ],
)
def test_the_type_comes_from_the_document_the_caller_or_the_shape(
    document: dict[str, Any], said: str, kind: str
) -> None:
    assert parse(document, said).media_type == kind


@pytest.mark.parametrize(
    ("document", "said", "error"),
    [
        (MANIFEST | {"mediaType": OCI_MANIFEST}, OCI_INDEX, Malformed),
        (MANIFEST | {"mediaType": OCI_MANIFEST}, DOCKER_MANIFEST, Malformed),
        (MANIFEST | INDEX, "", Malformed),
        (MANIFEST | INDEX | {"mediaType": OCI_MANIFEST}, "", Malformed),
        (MANIFEST | INDEX, OCI_INDEX, Malformed),
        (MANIFEST | {"schemaVersion": 1}, "", Unsupported),
        (MANIFEST | {"mediaType": DOCKER_SCHEMA1[0]}, "", Unsupported),
        (MANIFEST, DOCKER_SCHEMA1[1], Unsupported),
        ({"schemaVersion": 1, "fsLayers": [{"blobSum": D}], "history": []}, "", Unsupported),
        ({"fsLayers": []}, OCI_MANIFEST, Unsupported),
        (MANIFEST | {"mediaType": "application/vnd.x+json"}, "", Unsupported),
        ({"schemaVersion": 2}, "", Unsupported),
        ({"layers": [BLOB]}, OCI_MANIFEST, Malformed),
        (MANIFEST | {"config": CONFIG | {"digest": "sha256:../x"}}, "", Malformed),
        (MANIFEST | {"layers": [BLOB | {"size": -1}]}, "", Malformed),
        (MANIFEST | {"layers": [BLOB | {"size": SIZE_MAX + 1}]}, "", Malformed),
        (MANIFEST | {"layers": [BLOB | {"size": 10**30}]}, "", Malformed),
        (MANIFEST | {"layers": [BLOB | {"size": 1.5}]}, "", Malformed),
        (MANIFEST | {"layers": [BLOB | {"size": "1"}]}, "", Malformed),
        (MANIFEST | {"layers": [{"size": 1}]}, "", Malformed),
        (MANIFEST | {"layers": [None]}, "", Malformed),
        (MANIFEST | {"annotations": {"k": 1}}, "", Malformed),
    ],
)
def test_a_malformed_or_contradictory_document_is_refused(
    document: dict[str, Any], said: str, error: type[ImgfsError]
) -> None:
    with pytest.raises(error):
        parse(document, said)


@pytest.mark.parametrize("size", [0, SIZE_MAX])
def test_sizes_up_to_the_limit_of_json_numbers(size: int) -> None:
    found = parse(MANIFEST | {"layers": [BLOB | {"size": size}]})
    assert isinstance(found, Manifest)
    assert found.layers[0].size == size


def test_layers_at_the_limit_and_one_over() -> None:
    assert len(parse(MANIFEST | {"layers": [BLOB] * LAYERS_MAX}).children) == LAYERS_MAX + 1
    with pytest.raises(TooLarge, match=f"{LAYERS_MAX + 1} layers"):
        parse(MANIFEST | {"layers": [BLOB] * (LAYERS_MAX + 1)})


@pytest.mark.parametrize(
    ("read", "limit", "document"),
    [(parse_document, MANIFEST_SIZE_MAX, MANIFEST), (parse_config, CONFIG_SIZE_MAX, {})],
)
def test_bytes_at_the_limit_and_one_over(read: Callable[[bytes], object], limit: int, document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    read(data + b" " * (limit - len(data)))
    with pytest.raises(TooLarge, match=str(limit)):
        read(data + b" " * (limit - len(data) + 1))


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_depth_at_the_limit_and_one_over() -> None:
    decode_json(nested(JSON_DEPTH_MAX), "test")
    for depth in (JSON_DEPTH_MAX + 1, 100_000):
        with pytest.raises(Malformed, match="deeper than 64"):
            decode_json(nested(depth), "test")


def test_brackets_in_strings_or_side_by_side_do_not_count_as_depth() -> None:
    text = json.dumps({"a": '"[{\\' * 1000, "b": [[] for _ in range(1000)]})
    assert decode_json(text.encode(), "test")["a"] == '"[{\\' * 1000


@given(st.lists(st.sampled_from([b'"', b"\\", b"[", b"}", b"x", b"\n"])).map(b"".join))
def test_the_depth_check_reads_every_byte_of_a_string_once(data: bytes) -> None:
    # A quote outside all tokens would mean that the rest was scanned in vain from there, and then scanned again.
    spans = [match.span() for match in room._TOKEN.finditer(data)]
    covered = {at for start, end in spans for at in range(start, end)}
    assert all(at in covered for at in range(len(data)) if data[at : at + 1] == b'"')


@pytest.mark.parametrize("tail", [b"", b"\\", b"\\\\"])
def test_a_string_without_an_end_is_refused(tail: bytes) -> None:
    with pytest.raises(Malformed):
        parse_document(b"[" + b"[]," * 65 + b'"' + b'\\"' * (1 << 20) + tail)


def refusal(read: Callable[[], object]) -> str:
    """Return the message of the ImgfsError; empty if parsing succeeds."""
    try:
        read()
    except ImgfsError as error:
        return error.message
    return ""


@given(st.binary(max_size=300), st.sampled_from(["", OCI_MANIFEST, OCI_INDEX, "text/html", "é"]))
def test_any_bytes_parse_or_raise_an_imgfs_error(data: bytes, media_type: str) -> None:
    for read in (lambda: parse_document(data, media_type), lambda: parse_config(data)):
        assert len(refusal(read)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(str(D)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "schemaVersion",
                    "mediaType",
                    "config",
                    "layers",
                    "manifests",
                    "digest",
                    "size",
                    "platform",
                    "os",
                    "architecture",
                    "variant",
                    "rootfs",
                    "diff_ids",
                    "annotations",
                    "fsLayers",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_parses_or_raises_an_imgfs_error(value: object) -> None:
    data = json.dumps(value).encode()
    for read in (parse_document, parse_config):
        assert len(refusal(lambda read=read: read(data))) < 1000


def test_a_config_has_platform_and_diff_ids() -> None:
    made = image([layer([File("a")])], platform=ARM64)
    found = parse_config(made.config)
    assert (found.platform, list(found.diff_ids)) == (ARM64, made.diff_ids)
    assert parse_config(b"{}").platform == Platform("linux", "unknown")
    assert parse_config(b'{"rootfs":{"type":"layers","diff_ids":null}}').diff_ids == ()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", Malformed),
        (b"[]", Malformed),
        (b'{"rootfs":{"diff_ids":["sha256:1"]}}', Malformed),
        (b'{"os":"..","architecture":"a"}', Malformed),
        (b'{"os":"linux","architecture":"a/b"}', Malformed),
        (b"\xff\xfe{}", Malformed),
        (b'{"os":"\xff"}', Malformed),
        (json.dumps({"rootfs": {"diff_ids": [D] * (LAYERS_MAX + 1)}}).encode(), TooLarge),
    ],
)
def test_a_wrong_config_is_refused(data: bytes, error: type[ImgfsError]) -> None:
    with pytest.raises(error):
        parse_config(data)


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (OCI_LAYER, "none"),
        (f"{OCI_LAYER}+gzip", "gzip"),
        (f"{OCI_LAYER}+zstd", "zstd"),
        (f"{OCI_LAYER}+xz", "xz"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar", "none"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "none"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "zstd"),
    ],
)
def test_the_media_type_determines_the_compression(media_type: str, compression: str) -> None:
    assert layer_compression(media_type) == compression


@pytest.mark.parametrize(
    ("media_type", "word"),
    [
        ("application/vnd.in-toto+json", "layer of media type"),
        (f"{OCI_LAYER}+gzip+encrypted", "plain or compressed"),
        (f"{OCI_LAYER}+none", "layer"),
        (f"{OCI_LAYER}+", "layer"),
        ("", "layer"),
    ],
)
def test_an_unsupported_layer_type_is_named_in_the_error(media_type: str, word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        layer_compression(media_type)


@pytest.mark.parametrize(
    "kind", ["docker.image.rootfs.foreign.diff.tar.gzip", "oci.image.layer.nondistributable.v1.tar"]
)
def test_foreign_layers_are_recognised(kind: str) -> None:
    refuse_foreign(Descriptor(D, 7, f"{OCI_LAYER}+gzip"))
    with pytest.raises(Unsupported, match=f"layer {D}: is foreign .*content/{D}"):
        refuse_foreign(Descriptor(D, 7, f"application/vnd.{kind}"))


def test_subject_and_children_are_read() -> None:
    child = BLOB | {"artifactType": "application/spdx+json"}
    text = json.dumps({"manifests": [child, BLOB | {"artifactType": None}], "subject": BLOB}).encode()
    document = parse_document(text, OCI_INDEX)
    assert isinstance(document, ImageIndex)
    assert [one.artifact_type for one in document.manifests] == ["application/spdx+json", ""]
    assert document.subject == BLOB["digest"]
    odd = parse_document(json.dumps({"manifests": [], "subject": {"digest": "blake3:1"}}).encode(), OCI_INDEX)
    assert odd.subject is None, "an image with an odd subject can still be read"


def test_os_versions_of_windows_images_are_distinguished() -> None:
    told = {"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1", "os.features": ["win32k"]}
    document = parse_document(json.dumps({"manifests": [BLOB | {"platform": told}]}).encode(), OCI_INDEX)
    assert isinstance(document, ImageIndex)
    assert [str(one.platform) for one in document.manifests] == ["windows(10.0.17763.1+win32k)/amd64"]


def test_a_descriptor_has_a_readable_form() -> None:
    assert str(Descriptor(D, 7, OCI_CONFIG)) == f"{D} (7 bytes, {OCI_CONFIG})"


@pytest.mark.parametrize(
    "odd",
    [
        {"platform": {"os": "..", "architecture": "x"}},
        {"platform": {"os": "a/b", "architecture": "x"}},
        {"digest": "blake3:" + "0" * 64},
        {"size": -1},
    ],
)
def test_an_unreadable_entry_of_an_index_is_skipped(odd: dict[str, Any]) -> None:
    good = BLOB | {"platform": {"os": "linux", "architecture": "x86-64"}}
    document = parse_document(json.dumps({"manifests": [BLOB | odd, good]}).encode(), OCI_INDEX)
    assert isinstance(document, ImageIndex)
    assert [str(one.platform) for one in document.manifests] == ["linux/x86-64"]
