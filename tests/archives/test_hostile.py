"""Hostile and incomplete archives: one error that names the problem, bounded memory, and no image is listed."""

from __future__ import annotations

import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgfs.archives import tar_reader
from imgfs.archives.contents import TarContents
from imgfs.archives.stream import open_stream
from imgfs.errors import (
    ImgfsError,
    Malformed,
    NotFound,
    TooLarge,
    Truncated,
    Unsupported,
    VerificationFailed,
)
from imgfs.oci.descriptor import OCI_INDEX, OCI_MANIFEST
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import INDEX_NESTING_MAX
from imgfs.testing.images import ARM64, Compression, File, compress, image, index, layer
from tests.archives.memory import (
    MemoryStore,
    imported,
    imported_directory,
    layout_members,
    link,
    listed,
    members_of,
    oci_tar,
    saved,
    stream,
    tar,
)
from tests.support.compressions import COMPRESSIONS

BOX = image([layer([File("a", b"1" * 3000)]), layer([File("b", b"2")], "none")])
OTHER = image([layer([File("a", b"3")])], platform=ARM64)
BOTH = index([BOX, OTHER])
Files = dict[str, bytes]


def blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def without(files: Files, *names: str) -> Files:
    return {name: data for name, data in files.items() if name not in names}


def oci(**changes: bytes) -> Files:
    return layout_members(BOX, "box") | changes


def docker(**changes: Any) -> Files:
    """Return a docker-archive with this manifest.json."""
    files = saved(BOX, "box:1")
    [entry] = json.loads(files["manifest.json"])
    return files | {"manifest.json": json.dumps([entry | changes]).encode()}


def described(data: bytes, media_type: str, **changes: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": Digest.of(data), "size": len(data)} | changes


def listing(*descriptors: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": descriptors}).encode()


def rewritten(change: Callable[[dict[str, Any]], object]) -> Files:
    """Return a layout with a changed manifest under its correct digest."""
    document = json.loads(BOX.document)
    change(document)
    data = json.dumps(document).encode()
    files = without(layout_members(BOX, "box"), blob(BOX.digest))
    return files | {blob(Digest.of(data)): data, "index.json": listing(described(data, OCI_MANIFEST))}


def nested(depth: int) -> Files:
    files, child = layout_members(BOX, "box"), described(BOX.document, OCI_MANIFEST)
    for _ in range(depth):
        data = listing(child)
        files[blob(Digest.of(data))] = data
        child = described(data, OCI_INDEX)
    return files | {"index.json": listing(child)}


def other_diff_ids() -> Files:
    """Return a config with other diff IDs than the layers have."""
    config = json.loads(BOX.config) | {"rootfs": {"type": "layers", "diff_ids": [Digest.of(b"x"), Digest.of(b"y")]}}
    data = json.dumps(config).encode()
    files = rewritten(lambda document: document["config"].update(digest=Digest.of(data), size=len(data)))
    return files | {blob(Digest.of(data)): data}


def broken_layer() -> Files:
    data = b"\x1f\x8b\x08 no gzip behind this"
    files = rewritten(lambda document: document["layers"][0].update(digest=Digest.of(data), size=len(data)))
    return files | {blob(Digest.of(data)): data}


CASES: dict[str, tuple[Files, type[ImgfsError], str]] = {
    "an empty archive": ({}, Malformed, "is empty"),
    "something else": ({"README": b"hello"}, NotFound, "neither index.json nor manifest.json"),
    "no oci-layout": (without(oci(), "oci-layout"), Malformed, "no oci-layout"),
    "oci-layout of another version": (oci(**{"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}), Unsupported, "2.0.0"),
    "oci-layout that is no JSON": (oci(**{"oci-layout": b"1.0.0"}), Malformed, "oci-layout"),
    "index.json that is no JSON": (oci(**{"index.json": b"{"}), Malformed, "manifest"),
    "index.json with nothing in it": (oci(**{"index.json": listing()}), NotFound, "lists no image"),
    "index.json with an odd digest": (
        oci(**{"index.json": listing({"digest": "sha256:../../etc/passwd", "size": 1, "mediaType": OCI_MANIFEST})}),
        Malformed,
        "not a descriptor",
    ),
    "index.json nested deeply": (oci(**{"index.json": b'{"a":' * 5000}), Malformed, "nested deeper"),
    "index.json over the limit": (oci(**{"index.json": bytes(5 << 20)}), TooLarge, "index.json: has 5242880 bytes"),
    "manifest over the limit": (
        oci(**{"index.json": listing(described(BOX.document, OCI_MANIFEST, size=1 << 40))}),
        TooLarge,
        "the limit is",
    ),
    "missing manifest": (without(oci(), blob(BOX.digest)), NotFound, f"{BOX.digest}: is listed"),
    "missing config": (without(oci(), blob(Digest.of(BOX.config))), NotFound, "is listed in"),
    "missing layer": (without(oci(), blob(BOX.layers[0].digest)), NotFound, f"{BOX.layers[0].digest}: is listed"),
    "index of which nothing is there": (
        without(layout_members(BOTH), blob(BOX.digest), blob(OTHER.digest)),
        NotFound,
        "none of its 2 images",
    ),
    "blob that is not its name": (oci(**{blob(BOX.layers[0].digest): b"other"}), VerificationFailed, "other bytes"),
    "manifest with another size": (
        oci(**{"index.json": listing(described(BOX.document, OCI_MANIFEST, size=7))}),
        VerificationFailed,
        "its descriptor says 7",
    ),
    "layer with another size": (
        rewritten(lambda document: document["layers"][0].update(size=5)),
        VerificationFailed,
        "its descriptor says 5",
    ),
    "indexes nested too deeply": (nested(INDEX_NESTING_MAX + 1), TooLarge, "nested deeper"),
    "schema 1": (
        oci(**{blob(Digest.of(b'{"schemaVersion":1}')): b'{"schemaVersion":1}'})
        | {"index.json": listing(described(b'{"schemaVersion":1}', OCI_MANIFEST))},
        Unsupported,
        "schema 1",
    ),
    "diff IDs of other tars": (other_diff_ids(), VerificationFailed, "the image config says"),
    "fewer layers than diff IDs": (
        rewritten(lambda document: document["layers"].pop()),
        Malformed,
        "has 2 diff IDs for 1 layers",
    ),
    "layer that does not inflate": (broken_layer(), Malformed, "layer sha256:"),
    "layer of another compression": (
        rewritten(lambda document: document["layers"][1].update(mediaType=f"{BOX.layers[0].media_type(docker=False)}")),
        Malformed,
        "gzip",
    ),
    "manifest.json that is no JSON": (docker() | {"manifest.json": b"[{"}, Malformed, "manifest.json"),
    "manifest.json with nothing in it": (docker() | {"manifest.json": b"[]"}, NotFound, "lists no image"),
    "manifest.json of another shape": (docker() | {"manifest.json": b'{"Config":1}'}, Malformed, "manifest.json"),
    "docker config that is missing": (docker(Config="nothing.json"), NotFound, "'nothing.json'"),
    "docker config that leads out": (docker(Config="../../etc/passwd"), Malformed, "leads out"),
    "docker layer that is missing": (docker(Layers=["a/layer.tar"]), NotFound, "'a/layer.tar'"),
    "docker layer that leads out": (docker(Layers=["/etc/passwd"]), Malformed, "leads out"),
    "docker layers of another image": (
        docker(Layers=json.loads(saved(BOX)["manifest.json"])[0]["Layers"][::-1]),
        VerificationFailed,
        "the image config says",
    ),
    "fewer docker layers": (
        docker(Layers=json.loads(saved(BOX)["manifest.json"])[0]["Layers"][:1]),
        Malformed,
        "has 2 diff IDs for 1 layers",
    ),
    "too many docker layers": (docker(Layers=["x"] * 600), TooLarge, "512 layers"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_one_sentence_that_names_it(case: str) -> None:
    files, kind, words = CASES[case]
    with pytest.raises(kind) as caught:
        imported(tar(files.items()), MemoryStore())
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("an empty archive", "something else")])
def test_refused_as_a_directory_too(case: str, tmp_path: Path) -> None:
    files, _, _ = CASES[case]
    write(tmp_path / "x", files)
    with pytest.raises(ImgfsError):
        imported_directory(tmp_path / "x", MemoryStore())


def write(directory: Path, files: Files) -> None:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


FIFO = tarfile.TarInfo("fifo")
FIFO.type = tarfile.FIFOTYPE
MEMBERS: dict[str, tuple[list[Any], type[ImgfsError], str]] = {
    "..": ([("a/../../etc/passwd", b"x")], Malformed, "leads out"),
    "absolute": ([("/etc/passwd", b"x")], Malformed, "leads out"),
    "link out": ([link("x/layer.tar", "../../etc/shadow")], Malformed, "leads to '../../etc/shadow'"),
    "absolute link": ([link("layer.tar", "/etc/shadow")], Malformed, "out of the archive"),
    "hard link out": ([link("layer.tar", "../shadow", tarfile.LNKTYPE)], Malformed, "leads out"),
    "fifo": ([FIFO], Malformed, "is of type"),
    "duplicate": ([("x", b"1"), ("x", b"1")], Malformed, "appears twice"),
    "duplicate under another spelling": ([("x", b"1"), ("./x", b"2")], Malformed, "appears twice"),
    "duplicate blob": ([*oci().items(), (blob(BOX.digest), BOX.document)], Malformed, "appears twice"),
    "file and link of one name": ([("x", b"1"), link("x", "y")], Malformed, "appears twice"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_members_that_harm_are_refused(case: str) -> None:
    members, kind, words = MEMBERS[case]
    with pytest.raises(kind, match=words):
        imported(tar([*members, *docker().items()]), MemoryStore())


def test_links_that_form_a_loop_are_refused() -> None:
    members = [*docker(Layers=["x"]).items(), link("x", "y"), link("y", "x")]
    with pytest.raises(Malformed, match="form a loop"):
        imported(tar(members), MemoryStore())


def test_name_that_is_not_utf_8_is_refused() -> None:
    data = bytearray(tar([("xx", b"1")], tarfile.USTAR_FORMAT))
    data[0] = 0xFF
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    with pytest.raises(Malformed, match="not UTF-8"):
        imported(bytes(data), MemoryStore())


@pytest.mark.parametrize("size", [-1, -(1 << 62)])
def test_negative_size_is_refused(size: int) -> None:
    info = tarfile.TarInfo("x")
    info.size = size
    with pytest.raises(Malformed, match="has size -"):
        imported(info.tobuf(tarfile.GNU_FORMAT), MemoryStore())


@pytest.mark.parametrize("files", [oci(), docker()], ids=["oci", "docker"])
def test_archive_cut_anywhere_is_truncated_or_lacks_something(files: Files) -> None:
    data = tar(files.items())
    whole = len(data.rstrip(b"\0"))
    for end in [*range(0, whole, 512), *range(100, whole, 777)]:
        with pytest.raises((Truncated, NotFound, Malformed)):
            imported(data[:end], MemoryStore())


@pytest.mark.parametrize("claimed", [100 << 20, 1 << 60])
def test_claims_of_a_header_allocate_no_memory(claimed: int) -> None:
    for name, kind in (("index.json", b"0"), ("x", b"x"), ("x", b"L"), ("x.tar", b"0"), (blob(BOX.digest), b"0")):
        info = tarfile.TarInfo(name)
        info.size, info.type = claimed, kind
        tracemalloc.start()
        with pytest.raises((TooLarge, Truncated)):
            imported(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096), MemoryStore())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_reader, "MEMBERS_MAX", 3)
    with pytest.raises(TooLarge, match="more than 3 members"):
        imported(tar([(str(number), b"") for number in range(4)]), MemoryStore())


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_path_over_the_limit_is_refused(kind: bytes, form: int) -> None:
    members = []
    for name, target in (("a/" * 2048, ""), ("x", "a/" * 2049)) if kind == tarfile.SYMTYPE else (("a/" * 2049, ""),):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        members.append(info)
    with pytest.raises(TooLarge, match="the limit is 4096"):
        imported(tar([*members, *oci().items()], form), MemoryStore())


def test_names_together_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_reader, "NAMES_MAX", 10_000)
    members = [link(f"{number}" + "x" * 1500, "y" * 500) for number in range(6)]
    with pytest.raises(TooLarge, match="names take more than 10000 bytes"):
        imported(tar([*members, *oci().items()]), MemoryStore())


def test_block_behind_one_zero_block_is_refused() -> None:
    data = tar(oci().items())
    with pytest.raises(Malformed, match="one zero block"):
        imported(bytes(512) + data, MemoryStore())


def test_layers_go_by_in_pieces() -> None:
    big = image([layer([File("big", bytes(3 << 20))], "none")])
    store = MemoryStore()
    imported(tar(layout_members(big).items()), store, 1 << 20)
    assert store.most == 1 << 16


def test_end_blocks_may_miss_and_all_of_a_pipe_is_read() -> None:
    data = tar(oci().items())
    assert imported(data.rstrip(b"\0") + bytes(400), MemoryStore()).images[0].names == ("box",)
    pipe = stream(data + bytes(100_000))
    for _ in tar_reader.read_members(pipe):
        pass
    assert pipe.read(1) == b""


def test_one_missing_child_of_an_index_is_skipped() -> None:
    store = MemoryStore()
    found = imported(tar(without(layout_members(BOTH), blob(OTHER.digest)).items()), store)
    assert [one.digest for one in found.closure.missing] == [OTHER.digest]
    assert set(found.closure.manifests) == {BOX.digest}


@pytest.mark.parametrize("order", [1, -1])
def test_manifest_that_is_listed_as_something_else_too_is_walked_all_the_same(order: int) -> None:
    plain = described(BOX.document, "application/octet-stream")
    index_json = listing(*[plain, described(BOX.document, OCI_MANIFEST)][::order])
    data = index_json
    files = oci(**{blob(Digest.of(data)): data, "index.json": listing(described(data, OCI_INDEX))})
    assert set(imported(tar(files.items()), MemoryStore()).closure.manifests) == {BOX.digest}
    with pytest.raises(NotFound, match="is listed in"):
        imported(tar(without(files, blob(BOX.layers[0].digest)).items()), MemoryStore())


def test_second_manifest_with_another_size_for_a_shared_layer_is_refused() -> None:
    document = json.loads(BOX.document)
    document["layers"][0]["size"] = 5
    data = json.dumps(document).encode()
    both = listing(described(BOX.document, OCI_MANIFEST), described(data, OCI_MANIFEST))
    with pytest.raises(VerificationFailed, match="its descriptor says 5"):
        imported(tar(oci(**{blob(Digest.of(data)): data, "index.json": both}).items()), MemoryStore())


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_archive_that_is_cut_off_is_truncated(kind: Compression, tmp_path: Path) -> None:
    data = compress(tar(oci().items()), kind)
    for end in range(8, len(data) - 1, 97):
        (tmp_path / "cut").write_bytes(data[:end])
        with (tmp_path / "cut").open("rb") as file, pytest.raises(Truncated, match="get the complete archive"):
            TarContents(open_stream(file, COMPRESSIONS), MemoryStore())


def test_partly_read_file_continues_at_its_position(tmp_path: Path) -> None:
    (tmp_path / "both").write_bytes(b"a header of his own" + tar(oci().items()))
    with (tmp_path / "both").open("rb") as file:
        file.read(19)
        assert TarContents(open_stream(file, COMPRESSIONS), MemoryStore()).named("oci-layout")


def test_present_child_must_be_complete() -> None:
    with pytest.raises(NotFound, match=str(OTHER.layers[0].digest)):
        imported(tar(without(layout_members(BOTH), blob(OTHER.layers[0].digest)).items()), MemoryStore())


def test_links_of_legacy_archives_lead_to_their_layers() -> None:
    tars = {f"{one.diff_id.hex}.tar": one.tar for one in BOX.layers}
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    config = f"{Digest.of(BOX.config).hex}.json"
    manifest = json.dumps([{"Config": config, "RepoTags": None, "Layers": names}]).encode()
    links = [link(name, f"../{target}") for name, target in zip(names, tars, strict=True)]
    members = [*links, *tars.items(), (config, BOX.config), ("manifest.json", manifest)]
    found = imported(tar(members), MemoryStore())
    [one] = found.closure.manifests.values()
    assert [each.digest for each in one.layers] == BOX.diff_ids
    assert found.images[0].names == ()


def test_directory_with_a_link_out_or_a_pipe_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", oci())
    (tmp_path / "elsewhere").write_bytes(BOX.document)
    path = tmp_path / "x" / blob(BOX.digest)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Malformed, match="leads out"):
        imported_directory(tmp_path / "x", MemoryStore())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Malformed, match="not a regular file"):
        imported_directory(tmp_path / "x", MemoryStore())


def test_directory_brings_only_what_its_images_need(tmp_path: Path) -> None:
    write(tmp_path / "x", oci() | {blob(Digest.of(b"other")): b"other", "README": b"x"})
    store = MemoryStore()
    imported_directory(tmp_path / "x", store)
    assert len(store.blobs) == 4


def test_docker_25_writes_both_and_the_layout_counts() -> None:
    store = MemoryStore()
    imported(tar(layout_members(BOX, "r.io/box:1").items()), store)
    both = members_of(oci_tar([listed(BOX, "r.io/box:1")], store))
    both["manifest.json"] = b'[{"Config":"blobs/sha256/x","RepoTags":["other:1"],"Layers":[]}]'
    assert imported(tar(both.items()), MemoryStore()).images[0].names == ("r.io/box:1",)


def test_full_name_goes_before_the_tag_beside_it() -> None:
    annotations = {"io.containerd.image.name": "docker.io/library/box:1", "org.opencontainers.image.ref.name": "1"}
    index_json = listing(described(BOX.document, OCI_MANIFEST, annotations=annotations))
    found = imported(tar(oci(**{"index.json": index_json}).items()), MemoryStore())
    assert found.images[0].names == ("docker.io/library/box:1",)
