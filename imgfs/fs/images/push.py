"""images/<digest>/push/<host>/<repository>:<tag>: opening it pushes the image. It contains the report as JSON.

The path is unlisted and readable by the owner only, so that no recursive tool pushes and no other user pushes with the
daemon's logins. `push:all` pushes all that an index lists, `push:referrers` also the referrers, `push:all,referrers`
both. Each push has its own file, because the kernel keeps an inode locked while it is written to.
"""

from __future__ import annotations

import os
import stat

import msgspec
import pyfuse3

from imgfs.errors import Invalid
from imgfs.fs.caller import Caller
from imgfs.fs.files import DocumentFile
from imgfs.fs.node import Directory, Listing, Node, Shown, control_number, missing
from imgfs.fs.xattrs import as_error
from imgfs.oci.digest import Digest
from imgfs.oci.platform import Platform
from imgfs.oci.reference import is_host, is_repository, parse_reference
from imgfs.transfer.push.pushes import Pushes, PushRequest

DOOR = "push"
_ALL, _REFERRERS = "all", "referrers"


def push_directory(shown: Shown, pushes: Pushes, digest: Digest, platform: Platform, name: str) -> Node | None:
    """Return the push directory `name` of an image, or None. Without `all` it pushes `platform` only."""
    door, colon, text = name.partition(":")
    options = text.split(",") if colon else []
    if door != DOOR or not {*options} <= {_ALL, _REFERRERS} or len({*options}) < len(options):
        return None
    which = None if _ALL in options else platform
    return PushDirectory(shown, pushes, digest, which, referrers=_REFERRERS in options)


class PushDirectory(Directory):
    """A directory of push targets: a host or a part of a repository's name."""

    __slots__ = ("_digest", "_platform", "_prefix", "_pushes", "_referrers")

    mode = 0o700

    def __init__(
        self,
        shown: Shown,
        pushes: Pushes,
        digest: Digest,
        platform: Platform | None,
        *,
        referrers: bool,
        prefix: str = "",
    ) -> None:
        which = platform.slug if platform is not None else _ALL
        super().__init__(f"images/{digest}/push/{which}/{referrers}/{prefix}", shown)
        self._pushes = pushes
        self._digest = digest
        self._platform = platform
        self._referrers = referrers
        self._prefix = prefix

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        component = os.fsdecode(name)
        path = f"{self._prefix}/{component}" if self._prefix else component
        host, _, repository = path.partition("/")
        if is_host(host) and (not repository or is_repository(repository)):
            return PushDirectory(
                self._shown, self._pushes, self._digest, self._platform, referrers=self._referrers, prefix=path
            )
        try:
            reference = parse_reference(path)
        except Invalid:
            raise missing(name) from None
        wanted = PushRequest(self._digest, reference, self._platform, self._referrers)
        return PushFile(self._shown, self._pushes, wanted)

    async def entries(self, caller: Caller) -> Listing:
        return []


class PushFile(DocumentFile):
    """One push. `user.imgfs.progress` shows its progress while it runs, `user.imgfs.error` its last failure."""

    __slots__ = ("_pushes", "_shown", "_wanted")

    def __init__(self, shown: Shown, pushes: Pushes, wanted: PushRequest) -> None:
        super().__init__(control_number(str(wanted)))
        self._shown = shown
        self._pushes = pushes
        self._wanted = wanted

    async def attributes(self) -> pyfuse3.EntryAttributes:
        return self._shown.entry(self.number, stat.S_IFREG | 0o400)

    async def content(self, caller: Caller) -> bytes:
        report = await caller.wait(lambda: self._pushes.push(self._wanted))
        return report.encode()

    async def xattrs(self) -> dict[bytes, bytes]:
        pushes = self._pushes
        report = pushes.progress(self._wanted)
        progress = {b"user.imgfs.progress": msgspec.json.encode(report)} if report else {}
        return progress | as_error(pushes.failure(self._wanted))
