"""Hostile images: the errno and message, nothing stored, nothing touched outside, and other images still work."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgfs.oci.descriptor import OCI_INDEX, OCI_MANIFEST
from imgfs.oci.digest import Digest
from imgfs.testing.build import AMD64, BuiltIndex, BuiltLayer, Image, image, index, layer
from imgfs.testing.entries import DeviceFile, Dir, Entry, File, Hardlink, Symlink, Whiteout
from imgfs.testing.layertar import layer_tar
from tests.mount.scene import Scene, assert_verified, error_of, marked_layer, refused, serving, small, status_of

LIMIT_LAYERS = 512
RSS_LIMIT = 1 << 30
"""Measured: 570 MiB, of which the merged tree is 400 bytes a file."""
MILLION = 1_000_000


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("hostile")) as made:
        yield made
        top = made.mount.state.parent
        assert sorted(os.listdir(top)) == ["mnt", "state"]
        assert not list(made.mount.state.rglob("*escaped*"))
        assert not os.path.lexists("/escaped")
        assert_verified(made.mount.state)
        assert "Traceback" not in made.mount.log()


def blob_of(blob: bytes) -> BuiltLayer:
    """A layer whose blob is not what its tar compresses to; the digests are true."""
    return dataclasses.replace(marked_layer("base"), blob=blob)


def of_entries(*entries: Entry) -> BuiltLayer:
    return layer(entries)


def of_pax(path: bytes) -> BuiltLayer:
    """Return a file whose name is exactly that of an extended header."""
    record = b"path=" + path + b"\n"
    length = next(n for n in range(len(record), len(record) + 10) if len(b"%d " % n + record) == n)
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, length
    data = (b"%d " % length + record).ljust(-(-length // 512) * 512, b"\0")
    return layer(extended.tobuf() + data + layer_tar([File("y", b"")], "ustar"))


def flipped(position: int) -> BuiltLayer:
    """Return a tar with one flipped bit in a header."""
    tar = bytearray(layer_tar([File("a", b"one"), File("b", b"two")]))
    tar[position] ^= 1
    return layer(bytes(tar))


GZIP = marked_layer("gzip").blob
TAR = marked_layer("tar").tar
DEEP = "/".join(["d"] * 1025)

BROKEN_LAYERS: dict[str, tuple[Callable[[], BuiltLayer], int]] = {
    "gzip cut": (lambda: blob_of(GZIP[:-20]), errno.EBADMSG),
    "gzip without trailer": (lambda: blob_of(GZIP[:-8]), errno.EBADMSG),
    "gzip wrong crc": (lambda: blob_of(GZIP[:-8] + bytes(4) + GZIP[-4:]), errno.EBADMSG),
    "no gzip": (lambda: blob_of(b"this is no gzip" * 100), errno.EBADMSG),
    "no bytes": (lambda: blob_of(b""), errno.EBADMSG),
    "tar cut in a header": (lambda: layer(TAR[:1100]), errno.EBADMSG),
    "tar cut in a payload": (lambda: layer(layer_tar([File("a", bytes(5000))])[:2000]), errno.EBADMSG),
    "bad checksum": (lambda: flipped(0), errno.EBADMSG),
    "bad checksum later": (lambda: flipped(1024), errno.EBADMSG),
    "no tar": (lambda: layer(b"this is no tar, " * 64), errno.EBADMSG),
    "NUL in a name": (lambda: of_pax(b"nul\0escaped"), errno.EBADMSG),
    "long name": (lambda: of_pax(b"n" * 256), errno.EBADMSG),
    "long path": (lambda: of_pax(b"/".join([b"p" * 250] * 17)), errno.EBADMSG),
    "deep path": (lambda: of_pax(DEEP.encode()), errno.EBADMSG),
    "hard link to nothing": (lambda: of_entries(Hardlink("a", "nothing")), errno.EBADMSG),
    "hard link out of the tree": (lambda: of_entries(Hardlink("a", "../../../../etc/hostname")), errno.EBADMSG),
    "hard link through a link": (lambda: of_entries(Symlink("l", "/etc"), Hardlink("a", "l/hostname")), errno.EBADMSG),
    "hard link to a directory": (lambda: of_entries(Dir("d"), Hardlink("a", "d")), errno.EBADMSG),
    "hard link to the root": (lambda: of_entries(Hardlink("a", ".")), errno.EBADMSG),
    "hard link to itself": (lambda: of_entries(Hardlink("a", "a")), errno.EBADMSG),
    "file as parent": (lambda: of_entries(File("f", b""), File("f/below", b"")), errno.EBADMSG),
    "loop as parent": (lambda: of_entries(Symlink("a", "b"), Symlink("b", "a"), File("a/x", b"")), errno.EBADMSG),
    "root is a file": (lambda: of_entries(File(".", b"")), errno.EBADMSG),
    "huge header": (lambda: of_pax(b"x" * (1 << 20)), errno.EFBIG),
}


@pytest.mark.parametrize("case", BROKEN_LAYERS)
def test_a_broken_layer_is_told_and_harms_nobody(scene: Scene, case: str) -> None:
    make, code = BROKEN_LAYERS[case]
    broken = make()
    repository = case.lower().replace(" ", "-")
    made = image([marked_layer("base"), broken, marked_layer(f"top of {case}")])
    name = scene.serve(made, repository)
    with refused(code):
        os.listdir(f"{name}/rootfs/")
    assert status_of(name)["error"]
    assert error_of(name) == status_of(name)["error"] in (name / "status").read_text()
    assert (name / "config.json").read_bytes() == made.config
    works(scene, f"beside-{repository}")


def works(scene: Scene, mark: str) -> None:
    """Assert that another image can be pulled."""
    assert (scene.serve(small(mark), mark) / "rootfs/mark").read_text() == f"{mark}/0\n"


def test_a_broken_blob_can_be_read_as_the_bytes_that_it_is(scene: Scene) -> None:
    broken = blob_of(GZIP[:-20])
    name = scene.serve(image([broken]), "as-bytes")
    assert (name / "layers/0").read_bytes() == broken.blob
    with refused(errno.EBADMSG):
        os.listdir(f"{name}/rootfs/")


def test_a_broken_top_leaves_the_snapshots_below_it_alone(scene: Scene) -> None:
    good = marked_layer("good below")
    os.listdir(f"{scene.serve(image([good]), 'below')}/rootfs/")
    name = scene.serve(image([good, of_entries(Hardlink("a", "nothing"))]), "above")
    with refused(errno.EBADMSG):
        os.listdir(f"{name}/rootfs/")
    assert (scene.name("below") / "rootfs/mark").read_bytes() == b"good below\n"
    os.listdir(scene.mount.snapshots)


def test_names_are_cleaned_as_in_a_chroot(scene: Scene) -> None:
    entries = [
        File("/escaped-absolute", b"1"),
        File("../../../../escaped-up", b"2"),
        File("a/../../escaped-middle", b"3"),
        File("//escaped-slashes", b"4"),
        File("./escaped-dot", b"5"),
        Symlink("out", "/"),
        File("out/escaped-link", b"6"),
        Symlink("up", "../../../.."),
        File("up/escaped-dots", b"7"),
        Symlink("host", "/tmp"),
        File("host/escaped-tmp", b"8"),
        Hardlink("escaped-hard", "../escaped-up"),
    ]
    root = scene.serve(image([of_entries(*entries)]), "cleaned") / "rootfs"
    names = ["absolute", "up", "middle", "slashes", "dot", "link", "dots"]
    assert [(root / f"escaped-{name}").read_bytes() for name in names] == [b"%d" % n for n in range(1, 8)]
    assert (root / "tmp/escaped-tmp").read_bytes() == b"8"
    assert os.readlink(root / "host") == "/tmp"
    assert os.path.samefile(root / "escaped-hard", root / "escaped-up")


def test_whiteouts_and_nodes_that_overlay_would_obey_are_harmless(scene: Scene) -> None:
    lower = of_entries(File("kept", b"kept"), File("gone", b""), Dir("d"), File("d/x", b"x"))
    odd = ("d/.wh.", "d/.wh..", "d/.wh...", ".wh..wh.unknown", ".wh..wh.plnk/x")
    upper = of_entries(*(File(name, b"") for name in odd), Whiteout("gone"), DeviceFile("kept2", "character", 0, 0))
    root = scene.serve(image([lower, upper]), "whiteouts") / "rootfs"
    assert sorted(os.listdir(f"{root}/")) == ["d", "kept"]
    assert os.listdir(root / "d") == ["x"]


def manifest(made: Image, **changes: Any) -> bytes:
    return json.dumps(json.loads(made.document) | changes).encode()


def _with_layer(**changes: Any) -> Callable[[Image], bytes]:
    return lambda made: manifest(made, layers=[json.loads(made.document)["layers"][0] | changes])


BROKEN_MANIFESTS: dict[str, tuple[Callable[[Image], bytes], int]] = {
    "path as digest": (_with_layer(digest="../../../etc/passwd"), errno.EBADMSG),
    "digest in upper case": (_with_layer(digest="sha256:" + "A" * 64), errno.EBADMSG),
    "unknown algorithm": (_with_layer(digest="md5:" + "0" * 32), errno.EBADMSG),
    "negative size": (_with_layer(size=-1), errno.EBADMSG),
    "size over 2^53": (_with_layer(size=1 << 53 | 1), errno.EBADMSG),
    "size is text": (_with_layer(size="12"), errno.EBADMSG),
    "size is a fraction": (_with_layer(size=1.5), errno.EBADMSG),
    "no config": (lambda made: manifest(made, config=None), errno.EBADMSG),
    "layers is an object": (lambda made: manifest(made, layers={}), errno.EBADMSG),
    "both kinds": (lambda made: manifest(made, manifests=[json.loads(made.document)["config"]]), errno.EBADMSG),
    "schema 1": (lambda made: manifest(made, schemaVersion=1), errno.EOPNOTSUPP),
    "of a foreign type": (lambda made: manifest(made, mediaType="application/vnd.foreign+json"), errno.EOPNOTSUPP),
    "no json": (lambda made: made.document[:-1], errno.EBADMSG),
    "not utf-8": (lambda made: made.document.replace(b"+gzip", b"+gz\xffp"), errno.EBADMSG),
    "a list": (lambda made: b"[]", errno.EBADMSG),
    "deep": (lambda made: b'{"schemaVersion":2,"x":' + b"[" * 70 + b"]" * 70 + b"}", errno.EBADMSG),
    "very deep": (lambda made: b"[" * 1_000_000, errno.EBADMSG),
    "too many layers": (
        lambda made: manifest(made, layers=json.loads(made.document)["layers"] * (LIMIT_LAYERS + 1)),
        errno.EFBIG,
    ),
    "too long": (lambda made: made.document + b" " * (4 << 20), errno.EFBIG),
}


@pytest.mark.parametrize("case", BROKEN_MANIFESTS)
def test_a_broken_manifest_is_no_image(scene: Scene, case: str) -> None:
    make, code = BROKEN_MANIFESTS[case]
    made = small(case)
    made.add_to(scene.registry, "parts")
    repository = case.lower().replace(" ", "-").replace("^", "")
    media_type = "application/json" if code == errno.EOPNOTSUPP else OCI_MANIFEST
    digest = scene.registry.add_manifest(repository, "1", make(made), media_type)
    with refused(code):
        os.stat(scene.name(repository))
    assert error_of(scene.images / scene.registry.host)
    assert not scene.directory(digest).exists()
    works(scene, f"manifest-{repository}")


def test_layers_of_unknown_types_are_not_served_and_all_else_is(scene: Scene) -> None:
    made = small("foreign layer")
    made.add_to(scene.registry, "parts")
    document = _with_layer(mediaType="application/vnd.foreign.layer")(made)
    scene.registry.add_manifest("foreign", "1", document)
    name = scene.name("foreign")
    with refused(errno.EOPNOTSUPP):
        os.listdir(f"{name}/rootfs/")
    assert "application/vnd.foreign.layer" in status_of(name)["error"]
    assert (name / "layers/0").read_bytes() == made.layers[0].blob
    assert (name / "config.json").read_bytes() == made.config


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_diff_ids_as_layers(scene: Scene, count: int) -> None:
    layers = [marked_layer(f"count {count}/{n}") for n in range(2)]
    config = {"rootfs": {"type": "layers", "diff_ids": [*(one.diff_id for one in layers), Digest.of(b"3")][:count]}}
    name = scene.serve(image(layers, config=config), f"count{count}")
    with refused(errno.EBADMSG):
        os.listdir(f"{name}/rootfs/")
    assert f"{count} diff IDs" in error_of(name)
    assert f"{count} diff IDs" in status_of(name)["error"]
    json.loads((name / "status.json").read_bytes())


def test_each_diff_id_is_proven(scene: Scene) -> None:
    layers = [marked_layer(f"proof/{n}") for n in range(2)]
    config = {"rootfs": {"type": "layers", "diff_ids": [layers[0].diff_id, Digest.of(b"another tar")]}}
    name = scene.serve(image(layers, config=config), "proof")
    with refused(errno.EBADMSG):
        os.listdir(f"{name}/rootfs/")
    assert layers[1].diff_id in error_of(name)
    assert layers[1].diff_id in error_of(scene.blob(layers[1].digest))
    assert not status_of(name)["complete"]
    true = scene.serve(image(layers), "proven")
    assert (true / "rootfs/mark").read_bytes() == b"proof/1\n"
    with refused(errno.EBADMSG):
        os.listdir(f"{name}/rootfs/")


@pytest.mark.parametrize(
    "config", [b"", b"{", b"[]", b'{"os":"../../x","architecture":"y"}', b'{"rootfs":{"diff_ids":["x"]}}']
)
def test_a_broken_config_is_told(scene: Scene, config: bytes) -> None:
    made = dataclasses.replace(small("config"), config=config)
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": Digest.of(config),
        "size": len(config),
    }
    made = dataclasses.replace(made, document=manifest(made, config=described))
    name = scene.serve(made, f"config/{Digest.of(config).short}")
    assert (name / "config.json").read_bytes() == config
    with refused(errno.EBADMSG):
        os.listdir(f"{name}/rootfs/")
    assert error_of(name) == status_of(name)["error"]
    assert not status_of(name)["complete"]


def test_a_config_over_the_limit_is_not_even_asked_for(scene: Scene) -> None:
    made = small("big config")
    described = json.loads(made.document)["config"] | {"size": (16 << 20) + 1}
    name = scene.serve(dataclasses.replace(made, document=manifest(made, config=described)), "big-config")
    with scene.requests("manifest"), refused(errno.EFBIG):
        os.listdir(f"{name}/rootfs/")


def test_indexes_without_end_are_cut_off(scene: Scene) -> None:
    nested: BuiltIndex | Image = small("nested")
    for _ in range(8):
        nested.add_to(scene.registry, "nested")
        document = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{**nested.descriptor, "platform": None}]}
        ).encode()
        nested = BuiltIndex(OCI_INDEX, document, None, ())
    name = scene.serve(nested, "nested")
    os.stat(name)
    with refused(errno.EFBIG):
        os.listdir(f"{name}/rootfs/")
    assert "nested deeper" in error_of(name)
    assert "nested deeper" in status_of(name)["error"]
    assert scene.registry.requests("manifest") < 1000
    os.listdir(name)


def test_a_platform_that_is_no_path_component_costs_only_itself(scene: Scene) -> None:
    made = small("platform")
    made.add_to(scene.registry, "parts")
    for odd in ("..", ".", "a/b", "a\0b", "x" * 65):
        described = [made.descriptor | {"platform": {"os": odd, "architecture": "amd64"}}, made.descriptor]
        document = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": described}).encode()
        digest = scene.registry.add_manifest("platform", Digest.of(document).short, document, OCI_INDEX)
        name = scene.name("platform", digest.short)
        assert os.listdir(name / "platforms") == ["linux-amd64"]
        with refused(errno.ENOENT):
            os.stat(f"{name}/platforms/{odd.partition(chr(0))[0].partition('/')[0]}-amd64")


def test_two_names_for_one_platform_are_listed_once(scene: Scene) -> None:
    images = [image([marked_layer(f"twice {n}")], platform=AMD64) for n in range(2)]
    name = scene.serve(index(images), "twice")
    assert os.listdir(name / "platforms") == ["linux-amd64"]
    assert (name / "rootfs/mark").read_bytes() == b"twice 0\n"


def test_zeros_cost_no_disk(scene: Scene) -> None:
    zeros = layer([File("zeros", bytes(128 << 20)), File("mark", b"after")])
    name = scene.serve(image([zeros]), "zeros")
    before = _allocated(scene.mount.state)
    assert (name / "rootfs/mark").read_bytes() == b"after"
    assert _allocated(scene.mount.state) - before < 4 << 20
    with (name / "rootfs/zeros").open("rb") as file:
        file.seek(100 << 20)
        assert file.read() == bytes(28 << 20)


def _allocated(directory: Path) -> int:
    """Bytes on disk below `directory`; what settles meanwhile changes its name, and is counted under either."""
    command = ["du", "-s", "--block-size=1", directory]
    return int(subprocess.run(command, capture_output=True, check=False).stdout.split()[0])


def test_a_layer_of_a_million_files_is_served_in_bounded_memory(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    """The tar is never in memory as a whole. Its headers are packed, hashed and compressed piece by piece."""
    blob, tar = io.BytesIO(), hashlib.sha256()
    with gzip.GzipFile(fileobj=blob, mode="wb", compresslevel=1, mtime=0) as out:
        for piece in _million():
            tar.update(piece)
            out.write(piece)
    config = {"rootfs": {"type": "layers", "diff_ids": [Digest.from_hash(tar)]}}
    made = image([dataclasses.replace(layer(b""), blob=blob.getvalue())], config=config)
    name = scene.serve(made, "million")
    assert os.stat(name / "rootfs/d000999/f000999").st_size == 0
    assert len(os.listdir(name / "rootfs")) == 1000
    assert len(os.listdir(name / "rootfs/d000500")) == 1000
    peak = _peak(scene)
    record_property("peak", peak)
    assert peak < RSS_LIMIT
    works(scene, "beside-a-million")


def _million() -> Iterator[bytes]:
    for directory in range(1000):
        yield b"".join(_header(b"d%06d/f%06d" % (directory, file)) for file in range(MILLION // 1000))
    yield bytes(1024)


_BEFORE = b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" + b"14000000000\0"
_BEHIND = (b"0" + bytes(100) + b"ustar\x0000").ljust(512 - 156, b"\0")
_SUM = sum(_BEFORE) + sum(_BEHIND) + sum(b" " * 8)


def _header(name: bytes) -> bytes:
    """An empty file (ustar): only its name and so its checksum differ from the next one's."""
    return name.ljust(100, b"\0") + _BEFORE + b"%06o\0 " % (_SUM + sum(name)) + _BEHIND


def _peak(scene: Scene) -> int:
    text = Path(f"/proc/{scene.mount.pid()}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024
