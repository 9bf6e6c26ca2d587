"""A layout as a directory: extended, interrupted and continued; final names never hold wrong bytes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.archives.layout import Listed
from imgfs.archives.layout_directory import write_layout
from imgfs.disk.durable import temporary_name
from imgfs.errors import AlreadyExists, Busy, Malformed, VerificationFailed
from imgfs.oci.digest import Digest
from imgfs.testing.images import File, Image, image, layer
from tests.archives.memory import MemoryStore, blobs_of, imported_directory, listed

BOX = image([layer([File("a", b"1" * 3000)]), layer([File("b", b"2")], "none")])
OTHER = image([layer([File("a", b"3")])])


def export(path: Path, made: Image, *names: str, store: MemoryStore | None = None) -> list[int]:
    """Write the layout; return the sizes of the pieces."""
    store, moved = store or MemoryStore(blobs_of(made)), list[int]()
    sizes = {digest: len(data) for digest, data in blobs_of(made).items()}
    write_layout(path, [listed(made, *names)], sizes, store.pieces, moved.append)
    return moved


def found(path: Path) -> dict[str | None, Digest]:
    images: list[Listed] = imported_directory(path, MemoryStore()).images
    return {name: one.descriptor.digest for one in images for name in one.names or (None,)}


def test_images_are_added_and_a_name_moves(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    export(path, BOX, "box", "r.io/x:1")
    assert found(path) == {"box": BOX.digest, "r.io/x:1": BOX.digest}
    export(path, OTHER, "box")
    assert found(path) == {"box": OTHER.digest, "r.io/x:1": BOX.digest}
    export(path, OTHER)
    export(path, OTHER)
    assert found(path) == {"box": OTHER.digest, "r.io/x:1": BOX.digest, None: OTHER.digest}
    assert len(json.loads((path / "index.json").read_bytes())["manifests"]) == 3


def test_unknown_files_and_entries_stay_unchanged(tmp_path: Path) -> None:
    export(tmp_path, BOX, "box")
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"][0] |= {"artifactType": "x", "data": "eA==", "annotations": {"org.example": "y"}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    export(tmp_path, OTHER, "other")
    assert json.loads((tmp_path / "index.json").read_bytes())["manifests"][0] == index["manifests"][0]


class Torn(MemoryStore):
    """Write a layout whose source fails in the middle of one blob."""

    def __init__(self, made: Image, digest: Digest) -> None:
        super().__init__(blobs_of(made))
        self.asked: list[Digest] = []
        self._torn = digest

    def pieces(self, digest: Digest) -> Iterator[bytes]:
        self.asked.append(digest)
        yield self.blobs[digest][:10]
        if digest == self._torn:
            raise KeyboardInterrupt
        yield self.blobs[digest][10:]


def test_interrupted_at_any_blob_it_is_a_layout_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    for number, digest in enumerate(sorted(blobs_of(BOX))):
        path = tmp_path / str(number)
        export(path, OTHER, "other")
        with pytest.raises(KeyboardInterrupt):
            export(path, BOX, "box", store=Torn(BOX, digest))
        assert found(path) == {"other": OTHER.digest}
        assert not any(name.startswith(".tmp") for name in os.listdir(path / "blobs/sha256"))
        store = Torn(BOX, Digest.of(b"none"))
        export(path, BOX, "box", store=store)
        assert store.asked == sorted(blobs_of(BOX))[number:]
        assert found(path)["box"] == BOX.digest


def test_temporary_files_are_swept_and_damaged_blobs_rewritten(tmp_path: Path) -> None:
    export(tmp_path, BOX, "box")
    shelf = tmp_path / "blobs/sha256"
    for place in (tmp_path, shelf):
        (place / temporary_name()).write_bytes(b"x")
        (place / ".tmp-mine").write_bytes(b"x")
    damaged, short = (shelf / one.digest.hex for one in BOX.layers)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    short.write_bytes(b"")
    export(tmp_path, BOX, "box")
    assert sorted(os.listdir(shelf)) == [".tmp-mine", *sorted(digest.hex for digest in blobs_of(BOX))]
    assert sorted(os.listdir(tmp_path)) == [".tmp-mine", "blobs", "index.json", "oci-layout"]
    assert found(tmp_path) == {"box": BOX.digest}


def test_export_that_was_killed_before_the_first_name_continues(tmp_path: Path) -> None:
    (tmp_path / temporary_name()).write_bytes(b"{")
    export(tmp_path, BOX, "box")
    assert sorted(os.listdir(tmp_path)) == ["blobs", "index.json", "oci-layout"]


def test_progress_counts_what_was_there_too(tmp_path: Path) -> None:
    total = sum(len(data) for data in blobs_of(BOX).values())
    assert sum(export(tmp_path, BOX)) == sum(export(tmp_path, BOX)) == total


def test_wrong_bytes_get_no_final_name(tmp_path: Path) -> None:
    wrong = blobs_of(BOX) | {BOX.layers[0].digest: b"wrong"}
    with pytest.raises(VerificationFailed):
        export(tmp_path, BOX, store=MemoryStore(wrong))
    assert not (tmp_path / "blobs/sha256" / BOX.layers[0].digest.hex).exists()
    assert not (tmp_path / "index.json").exists()


def test_directory_that_is_not_a_layout_is_not_changed(tmp_path: Path) -> None:
    """Files with the names of temporary files belong to the user here."""
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / ".tmp-drafts").mkdir()
    (tmp_path / ".tmp-drafts/one").write_text("x")
    (tmp_path / temporary_name()).write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyExists, match="not an OCI layout"):
        export(tmp_path, BOX)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"manifests":[1]}', b"[" * 100])
def test_malformed_index_is_refused_and_stays(tmp_path: Path, index: bytes) -> None:
    export(tmp_path, BOX)
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(Malformed):
        export(tmp_path, OTHER)
    assert (tmp_path / "index.json").read_bytes() == index


def test_one_export_at_a_time_writes_into_a_directory(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(Busy, match="another export"):
        export(tmp_path, BOX)
    os.close(other)
    export(tmp_path, BOX)


def test_files_have_the_modes_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        export(tmp_path / "x", BOX)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert (tmp_path / "x/blobs").stat().st_mode & 0o777 == 0o755
