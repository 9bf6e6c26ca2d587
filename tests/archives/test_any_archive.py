"""Property tests: export and import into an empty store is the identity, for any order of members and pieces."""

from __future__ import annotations

import gzip
import random
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO

from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.archives.contents import TarContents
from imgfs.archives.importing import import_images, list_images
from imgfs.archives.layout import Listed
from imgfs.archives.stream import open_stream
from imgfs.oci.digest import Digest
from imgfs.testing.images import ARM64, BuiltIndex, File, Image, attestation, compress, image, index, layer
from tests.archives.memory import (
    MemoryStore,
    blobs_of,
    docker_archive,
    imported,
    listed,
    members_of,
    oci_tar,
    saved,
    tar,
)
from tests.support.compressions import COMPRESSIONS as KNOWN

COMPRESSIONS = st.sampled_from(["none", "gzip", "zstd"])
LAYERS = st.builds(
    lambda data, compression: layer([File("file", data)], compression), st.binary(max_size=3000), COMPRESSIONS
)
IMAGES = st.builds(lambda layers, docker: image(layers, docker=docker), st.lists(LAYERS, max_size=4), st.booleans())
WORDS = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
NAMES = st.one_of(WORDS, st.builds(lambda one, two: f"r.io/{one}:{two}", WORDS, WORDS))


@st.composite
def everything(draw: st.DrawFn) -> Image | BuiltIndex:
    """Return an image, or an index of two platforms and an attestation."""
    made = draw(IMAGES)
    if draw(st.booleans()):
        return made
    return index([made, image([draw(LAYERS)], platform=ARM64), attestation(made)], docker=draw(st.booleans()))


@given(st.dictionaries(NAMES, everything(), min_size=1, max_size=3), st.randoms(), st.integers(1, 5000))
@settings(max_examples=60)
def test_export_and_import_into_a_fresh_store_is_identity(
    made: dict[str, Image | BuiltIndex], shuffler: random.Random, piece: int
) -> None:
    store = MemoryStore({digest: data for one in made.values() for digest, data in blobs_of(one).items()})
    images = [listed(one, name) for name, one in made.items()]
    archive = oci_tar(images, store)
    assert oci_tar(images, store) == archive
    members = list(members_of(archive).items())
    shuffler.shuffle(members)
    for data in (archive, tar(members)):
        fresh = MemoryStore()
        found = imported(data, fresh, piece)
        assert fresh.blobs == store.blobs
        assert _told(found.images) == _told(images)
        assert set(found.closure.blobs) == set(store.blobs)
        assert oci_tar(found.images, fresh) == archive


@given(st.lists(IMAGES, min_size=1, max_size=3), st.randoms(), st.integers(1, 5000))
@settings(max_examples=40)
def test_docker_archive_has_the_config_and_the_tars_whatever_their_compression(
    made: list[Image], shuffler: random.Random, piece: int
) -> None:
    archive = docker_archive([(one, [f"r.io/x:{number}"]) for number, one in enumerate(made)])
    members = list(members_of(archive).items())
    shuffler.shuffle(members)
    first, second = MemoryStore(), MemoryStore()
    found, again = imported(archive, first, piece), imported(tar(members), second, piece)
    assert _told(found.images) == _told(again.images)
    assert first.blobs == second.blobs
    names = {name: one for one in found.images for name in one.names}
    for number, one in enumerate(made):
        manifest = found.closure.manifests[names[f"r.io/x:{number}"].descriptor.digest]
        assert manifest.config.digest == Digest.of(one.config)
        assert [each.digest for each in manifest.layers] == one.diff_ids


@given(IMAGES, COMPRESSIONS)
@settings(max_examples=20)
def test_compressed_archives_and_compressed_layers_in_them_are_read(made: Image, outer: str) -> None:
    files = saved(made, "box:1")
    plain = MemoryStore()
    expected = imported(tar(files.items()), plain).images
    packed = {name: gzip.compress(data) if name.endswith(".tar") else data for name, data in files.items()}
    store = MemoryStore()
    images = imported(tar(packed.items()), store).images
    assert images[0].names == ("box:1",)
    data = tar(files.items())
    fresh = MemoryStore()
    with _file(compress(data, outer)) as file:
        contents = TarContents(open_stream(file, KNOWN), fresh)
        assert import_images(list_images(contents, fresh, KNOWN), contents, fresh, KNOWN).images == expected


@contextmanager
def _file(data: bytes) -> Generator[BinaryIO]:
    """Return an open file that has a descriptor."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


def _told(images: list[Listed]) -> set[tuple[str, Digest]]:
    return {(name, one.descriptor.digest) for one in images for name in one.names}
