"""A resource has a text form: its path below the mountpoint."""

from __future__ import annotations

import pytest

from imgfs.errors import Invalid
from imgfs.leases.resource import Resource, ResourceKind, content, layer, parse_resource, snapshot
from imgfs.oci.digest import Digest

DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    "resource",
    [
        content(DIGEST),
        layer(DIGEST),
        snapshot(DIGEST),
        snapshot(f"{DIGEST}@linux-amd64"),
        snapshot("active/mine"),
        Resource(ResourceKind.IMAGE, "docker.io/library/alpine:3.20"),
        Resource(ResourceKind.INGEST, "layer-1"),
        Resource(ResourceKind.INGEST, "a/b"),
    ],
)
@pytest.mark.parametrize("above", ["", "../../../", "./", "/"])
def test_a_resource_path_parses_back_to_the_same_resource(resource: Resource, above: str) -> None:
    assert parse_resource(above + str(resource)) == resource


@pytest.mark.parametrize(
    "target", ["", "content", "content/", "content/word", "contents/x", DIGEST, "../etc/passwd", "images/" + "x" * 5000]
)
def test_an_invalid_resource_path_is_refused(target: str) -> None:
    with pytest.raises(Invalid):
        parse_resource(target)
