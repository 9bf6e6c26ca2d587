"""A tree of plain files, links and xattrs in the shape of the mount: what commands read and write without a daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgfs.oci.digest import Digest, chain_id
from imgfs.testing.images import BuiltIndex, Image

UNLISTED = "unlisted"
"""Where the links from images to chains are: the mount has them in snapshots/ and does not list them."""


class PlainTree:
    """`path` looks like a mountpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path / "images"
        self.images.mkdir()
        self.snapshots = path / "snapshots"
        (self.snapshots / "active").mkdir(parents=True)
        (path / UNLISTED).mkdir()
        self.transfers = path / ".imgfs/transfers"
        self.transfers.mkdir(parents=True)
        (path / "containers").mkdir()
        for name in ("_all", "_running"):
            (path / "containers" / name).write_text("[]")
        (path / ".imgfs/version").write_text("0\n")

    def add(self, image: Image, *names: str, here: int = 0, index: BuiltIndex | None = None, **changes: Any) -> Digest:
        """An image of which `here` bytes of every layer are local; `changes` are laid over its status.json."""
        digest = index.digest if index else image.digest
        directory = self.images / digest
        directory.mkdir()
        (directory / "manifest.json").write_bytes(image.document)
        (directory / "config.json").write_bytes(image.config)
        if index:
            (directory / "index.json").write_bytes(index.document)
        (directory / "rootfs").symlink_to(f"../../{UNLISTED}/{digest}@linux-amd64/rootfs")
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
                "media_type": one.media_type(docker=False),
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

    def transfer(self, direction: str, digest: str, **facts: Any) -> None:
        """Something on its way; what `facts` leave out is as at its beginning."""
        name = f"{direction}-{digest}"
        told = {
            "name": name,
            "direction": direction,
            "digest": digest,
            "ref": None,
            "names": [],
            "host": "registry.test",
            "repository": "team/app",
            "offset": 0,
            "rate": 0,
            "eta": None,
            "attempts": 1,
            "error": None,
        }
        (self.transfers / name).write_text(json.dumps(told | facts))

    def add_chain(self, image: Image, digest: Digest) -> str:
        """The chain of an image, and the link that leads there from its rootfs; the chain ID."""
        chain = chain_id(image.diff_ids)
        self.add_snapshot(chain, usage=5000)
        (self.path / UNLISTED / f"{digest}@linux-amd64").symlink_to(chain)
        return chain

    def add_snapshot(self, id: str, parent: str | None = None, *, usage: int = 0, children: Sequence[str] = ()) -> Path:
        """A snapshot that is no view; its directory."""
        directory = self.snapshots / id
        directory.mkdir()
        facts = {
            "kind": "active" if id.startswith("active/") else "committed",
            "usage": str(usage),
            "created": "2023-11-14T22:13:20Z",
            "children": "\n".join(children),
        }
        for key, value in facts.items():
            os.setxattr(directory, f"user.imgfs.{key}", value.encode())
        if parent:
            (directory / "parent").symlink_to(f"{'../' * id.count('/')}../{parent}")
        return directory

    def complain(self, path: str, sentence: str) -> None:
        """Set what the daemon says failed last, at a path below images/."""
        self.complain_at(self.images / path, sentence)

    def complain_at(self, path: Path, sentence: str) -> None:
        """The same at any path."""
        os.setxattr(path, "user.imgfs.error", sentence.encode())
