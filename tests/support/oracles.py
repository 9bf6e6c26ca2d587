"""Other unpackers, which define what an image's root filesystem is.

Both need root and a directory on a filesystem with devices and extended attributes. Their known refusals and
differences:

umoci 0.4.7 refuses zstd layers and GNU sparse headers (type S; PAX sparse files work) and drops empty extended
attributes.

containerd 1.6 refuses GNU sparse headers. With overlayfs it applies a layer without the lower ones: it refuses hard
links to files of a lower layer and whiteouts after an entry of the same layer, and replaces a parent that is a lower
layer's symbolic link by a directory. With native it sees all layers, but every layer is a copy with new directories,
and a whiteout after an entry of its own layer removes that entry, against the specification.

UMOCI, CONTAINERD_NATIVE and CONTAINERD_OVERLAYFS are the parts of `oddities_image` that each unpacks as specified; BOTH
is what umoci and native share. *_IGNORES are the attributes that a comparison with each ignores.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from imgfs.oci.digest import Digest, chain_id
from imgfs.oci.manifest import parse_config
from imgfs.testing.build import REF_NAME
from imgfs.testing.images import IMPLICIT_DIRECTORIES, Oddities
from tests.support.programs import end, run, start, wait_ready
from tests.support.trees import directory_mtimes, xattr

Snapshotter = Literal["overlayfs", "native"]

UMOCI = Oddities(zstd=False, gnu_sparse=False)
CONTAINERD_NATIVE = Oddities(gnu_sparse=False, late_whiteouts=False)
CONTAINERD_OVERLAYFS = Oddities(gnu_sparse=False, late_whiteouts=False, lower_hardlinks=False, lower_symlinks=False)
BOTH = Oddities(zstd=False, gnu_sparse=False, late_whiteouts=False)

_IMPLICIT = directory_mtimes("no entry says when: unpackers say now", IMPLICIT_DIRECTORIES)
UMOCI_IGNORES = (_IMPLICIT, xattr("user.empty", "umoci reads tar attributes as Go's Xattrs, which has no empty ones"))
CONTAINERD_OVERLAYFS_IGNORES = (
    _IMPLICIT,
    directory_mtimes("the root is a directory that the snapshotter makes for each layer", [b""]),
)
CONTAINERD_NATIVE_IGNORES = (
    directory_mtimes("native copies each layer and leaves its directories the time of the copy"),
)

_BASE_NAME = "oracle.test/image"
_DISABLED = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper"]


def umoci_unpack(layout: Path, tag: str, target: Path) -> Path:
    """Unpack `tag` of an OCI layout into the new directory `target`, and return it."""
    assert os.geteuid() == 0, "umoci: only root unpacks owners, devices and security.* attributes; run as root"
    run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", target)
    return target


@contextmanager
def ctr_unpack(layout: Path, tag: str, workdir: Path, snapshotter: Snapshotter = "native") -> Generator[Path]:
    """Unpack `tag` of an OCI layout with a private containerd, and yield its read-only mountpoint.

    `workdir` is the directory of the containerd. It is unmounted and stopped when the block ends.
    """
    assert os.geteuid() == 0, "containerd: only root mounts; run as root"
    with _containerd(workdir) as socket:
        archive = workdir / "image.tar"
        archive.write_bytes(_archive(layout, tag))
        ctr = ["--address", str(socket)]
        chosen = ["--snapshotter", snapshotter]
        run("ctr", *ctr, "images", "import", *chosen, "--base-name", _BASE_NAME, archive)
        target = workdir / "rootfs"
        target.mkdir()
        view = ["snapshots", *chosen, "view", "--target", str(target), "oracle", _chain_id(layout, tag)]
        command = run("ctr", *ctr, *view).decode().split()
        with _mounted(command, target):
            yield target


def pulled_by_ctr(name: str, workdir: Path) -> dict[Digest, bytes]:
    """Pull `name` without TLS with a private containerd in `workdir`. Return the blobs by digest."""
    with _containerd(workdir) as socket:
        ctr = ["--address", str(socket)]
        run("ctr", *ctr, "content", "fetch", "--plain-http", "--all-platforms", name)
        digests = [Digest.parse(line) for line in run("ctr", *ctr, "content", "ls", "-q").decode().split()]
        return {digest: run("ctr", *ctr, "content", "get", digest) for digest in digests}


def ctr_available() -> bool:
    """Return whether `ctr_unpack` can run here: as root, with containerd and ctr installed."""
    return os.geteuid() == 0 and all(map(shutil.which, ("containerd", "ctr")))


@contextmanager
def _containerd(workdir: Path) -> Generator[Path]:
    workdir.mkdir(parents=True, exist_ok=True)
    config, log = workdir / "config.toml", workdir / "containerd.log"
    with TemporaryDirectory(prefix="ctr-") as short:
        # The path of a socket has at most 107 bytes. A test's own directory is longer.
        socket = Path(short, "socket")
        config.write_text(_config(workdir, socket))
        process = start("containerd", ["--config", str(config)], log)
        try:
            wait_ready(process, socket.exists, log)
            run("ctr", "--address", str(socket), "version")
            yield socket
        finally:
            end(process)


@contextmanager
def _mounted(command: list[str], target: Path) -> Generator[None]:
    run(*command)
    try:
        yield
    finally:
        run("umount", target)


def _config(workdir: Path, socket: Path) -> str:
    return f"""version = 2
root = "{workdir}/root"
state = "{socket.parent}/state"
disabled_plugins = {json.dumps(_DISABLED)}
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[debug]
level = "warn"
"""


def _archive(layout: Path, tag: str) -> bytes:
    """Return the layout as a tar whose index has only `tag`, because containerd unpacks everything in an index."""
    index = json.dumps({"schemaVersion": 2, "manifests": [_named(layout, tag)]}).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(layout / "oci-layout", "oci-layout")
        archive.add(layout / "blobs", "blobs")
        info = tarfile.TarInfo("index.json")
        info.size = len(index)
        archive.addfile(info, io.BytesIO(index))
    return stream.getvalue()


def _chain_id(layout: Path, tag: str) -> Digest:
    manifest = json.loads(_blob(layout, _named(layout, tag)["digest"]))
    return chain_id(parse_config(_blob(layout, manifest["config"]["digest"])).diff_ids)


def _named(layout: Path, tag: str) -> dict[str, Any]:
    manifests = json.loads((layout / "index.json").read_bytes())["manifests"]
    return next(one for one in manifests if one["annotations"][REF_NAME] == tag)


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()
