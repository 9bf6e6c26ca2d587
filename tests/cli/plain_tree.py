"""A tree of plain files, links and xattrs in the shape of the mount: what commands read and write without a daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from imgfs.oci.digest import Digest
from imgfs.testing.images import Image, Index


class PlainTree:
    """`path` looks like a mountpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path / "images"
        self.images.mkdir()
        (path / ".imgfs").mkdir()
        (path / ".imgfs/version").write_text("0\n")

    def add(self, image: Image, *names: str, here: int = 0, index: Index | None = None, **changes: Any) -> Digest:
        """An image of which `here` bytes of every layer are local; `changes` are laid over its status.json."""
        digest = index.digest if index else image.digest
        directory = self.images / digest
        directory.mkdir()
        (directory / "manifest.json").write_bytes(image.document)
        (directory / "config.json").write_bytes(image.config)
        if index:
            (directory / "index.json").write_bytes(index.document)
        (directory / "rootfs").symlink_to(f"../../snapshots/{digest}@linux-amd64/rootfs")
        (directory / "pull").write_text("sha256:chain\n")
        for name in names:
            self.name(name, digest)
        self.set_status(digest, image, list(names), here, **changes)
        return digest

    def name(self, name: str, digest: str) -> None:
        """Register a name."""
        link = self.images / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../" * name.count("/") + digest)

    def set_status(self, digest: Digest, image: Image, names: list[str], here: int, **changes: Any) -> None:
        """Write status.json."""
        parts = [
            {
                "kind": "layer",
                "digest": one.digest,
                "size": len(one.blob),
                "media_type": one.media_type(False),
                "state": "local" if here >= len(one.blob) else "loading" if here else "absent",
                "offset": min(here, len(one.blob)),
                "diff_id": None,
                "where": "registry.test" if 0 < here < len(one.blob) else None,
                "error": None,
            }
            for one in image.layers
        ]
        status: dict[str, Any] = {
            "digest": digest,
            "names": names,
            "platform": "linux/amd64",
            "complete": all(part["state"] == "local" for part in parts),
            "lazy": False,
            "why": "no table of contents",
            "error": None,
            "parts": parts,
        }
        (self.images / digest / "status.json").write_text(json.dumps(status | changes))

    def complain(self, path: str, sentence: str) -> None:
        """Set what the daemon says failed last, at a path below images/."""
        os.setxattr(self.images / path, "user.imgfs.error", sentence.encode())
