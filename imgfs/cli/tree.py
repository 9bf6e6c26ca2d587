"""The mounted tree as the command line uses it: paths, names, status, and the daemon's word on what failed.

Owns which file answers which question. Nothing here asks a registry except where it says so.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast
from urllib.parse import quote

from imgfs.cli.failure import Failure, from_os_error
from imgfs.filename import without_colons
from imgfs.oci.digest import is_digest

_PIECE = 1 << 17


class Part(TypedDict):
    """One blob of an image in status.json (transfer/status.py says what the keys mean)."""

    kind: str
    digest: str
    size: int
    media_type: str
    state: str
    offset: int
    diff_id: str | None
    where: str | None
    error: str | None


class Status(TypedDict):
    """An image's status.json."""

    digest: str
    names: list[str]
    platform: str
    complete: bool
    lazy: bool
    why: str
    error: str | None
    parts: list[Part]


class Transfer(TypedDict):
    """A file of .imgfs/transfers/ (transfer/running.py says what the keys mean)."""

    name: str
    direction: str
    digest: str
    ref: str | None
    names: list[str]
    host: str
    repository: str
    total: int
    offset: int
    rate: int
    eta: float | None
    started: int
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class RegisteredName:
    """A name below images/; `updated` is ns since the epoch."""

    name: str
    digest: str
    updated: int


class Tree:
    """The tree mounted at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str) -> Tree:
        """The tree at `path`; fails, saying what to do, where none answers."""
        tree = cls(os.path.abspath(path))
        try:
            os.statvfs(tree.path)  # of a dead daemon's mount the kernel still knows what stat asks for, but not this
            os.stat(f"{tree.path}/.imgfs/version")
        except OSError as error:
            raise _unmounted(tree.path, error) from None
        return tree

    @property
    def log(self) -> str:
        """The daemon's log, as a file of the tree."""
        return f"{self.path}/.imgfs/log"

    def image(self, digest: str) -> str:
        """The directory of an image."""
        return f"{self.path}/images/{digest}"

    def pull_door(self, digest: str) -> str:
        """The unlisted file that brings all of an image here when it is opened."""
        return f"{self.image(digest)}/pull"

    def pull(self, digest: str) -> str:
        """Bring all of an image here, durably; returns the chain ID. Raises OSError."""
        return self.read(self.pull_door(digest)).decode().strip()

    def push_door(self, digest: str, name: str, *, all_platforms: bool, referrers: bool) -> str:
        """The unlisted file that pushes an image to `name` when it is opened, and holds the report."""
        options = ",".join(word for word, on in (("all", all_platforms), ("referrers", referrers)) if on)
        return f"{self.image(digest)}/push{':' if options else ''}{options}/{name}"

    def referrers(self, digest: str) -> str:
        """The directory of what refers to an image."""
        return f"{self.image(digest)}/referrers"

    def referrers_door(self, digest: str, artifact_type: str | None) -> str:
        """The unlisted file that asks the registries what refers to an image, of one type maybe, when it is opened."""
        of_type = "" if artifact_type is None else f":{quote(artifact_type, safe='')}"
        return f"{self.referrers(digest)}/refresh{of_type}"

    def list_door(self, host: str, repository: str) -> str:
        """The unlisted file that asks for the tags of a repository, or without one for a registry's repositories."""
        return f"{self.link(host)}/{repository}/_tags" if repository else f"{self.link(host)}/_catalog"

    @property
    def images(self) -> str:
        """The directory of all names."""
        return f"{self.path}/images"

    def link(self, name: str) -> str:
        """The symbolic link that a name is, or would be. Looking an unregistered one up asks its registry."""
        return f"{self.path}/images/{name}"

    def blob(self, digest: str) -> str:
        """The file of a blob. Opening one that is not here fetches it."""
        return f"{self.path}/content/{digest}"

    def ingest(self, ref: str) -> str:
        """The writer of a ref; one without `/`."""
        return f"{self.path}/content/ingest/{ref}"

    def layer(self, diff_id: str) -> str:
        """The uncompressed tar of a layer that a known chain has; unlisted."""
        return f"{self.path}/.imgfs/layers/{diff_id}"

    def lease(self, id: str) -> str:
        """The directory of a lease."""
        return f"{self.path}/.imgfs/leases/{id}"

    def discard(self, digests: Sequence[str]) -> None:
        """Remove those of these blobs that nothing refers to, a few hundred at most. Fails as the daemon does."""
        try:
            os.setxattr(f"{self.path}/.imgfs", "user.imgfs.gc", " ".join(["discard", *digests]).encode())
        except OSError as error:
            raise self._gone(error, "gc") or from_os_error(error, "gc", None, self.log) from None

    @property
    def content(self) -> str:
        """The directory of stored blobs."""
        return f"{self.path}/content"

    @property
    def snapshots(self) -> str:
        """The directory of snapshots."""
        return f"{self.path}/snapshots"

    def snapshot(self, id: str) -> str:
        """A snapshot's directory, or the link that a view is. `id` is a chain ID, a name, or `active/<key>`."""
        return f"{self.path}/snapshots/{id}"

    def snapshot_rootfs(self, id: str) -> str:
        """Where a snapshot's files are, without a colon below the mountpoint. Walking there mounts it."""
        return f"{self.snapshot(without_colons(id))}/rootfs"

    @property
    def containers(self) -> str:
        """The directory of containers."""
        return f"{self.path}/containers"

    def container_states(self, *, running: bool) -> str:
        """The unlisted file with the states of all containers, or of those that have not ended."""
        return f"{self.containers}/{'_running' if running else '_all'}"

    def container(self, id: str) -> str:
        """The directory of a container."""
        return f"{self.containers}/{id}"

    def deleted_container(self, id: str) -> str:
        """The file that tells how a deleted container ended."""
        return f"{self.path}/.imgfs/deleted/containers/{id}"

    def names(self) -> Iterator[RegisteredName]:
        """Every registered name, sorted."""
        return self._below("")

    def is_registered(self, name: str) -> bool:
        """Whether `name` is listed in its directory."""
        parent, _, last = name.rpartition("/")
        try:
            with os.scandir(self.link(parent)) as entries:
                return any(entry.name == last and entry.is_symlink() for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def digests(self) -> list[str]:
        """The digest of every image that has a name, sorted."""
        return sorted(name for name in os.listdir(f"{self.path}/images") if is_digest(name))

    def status(self, digest: str) -> Status:
        """What is local of an image. Raises OSError: FileNotFoundError where nothing here mentions it."""
        return cast("Status", self.read_json(f"{self.image(digest)}/status.json"))

    def transfers(self) -> list[Transfer]:
        """What is on its way now, the oldest first. Raises OSError."""
        found: list[Transfer] = []
        for name in os.listdir(f"{self.path}/.imgfs/transfers"):
            try:
                found.append(cast("Transfer", self.read_json(f"{self.path}/.imgfs/transfers/{name}")))
            except FileNotFoundError:
                continue  # it ended while this one looked
        return sorted(found, key=lambda one: (one["started"], one["name"]))

    def read(self, path: str) -> bytes:
        """All of a file of the tree, in as few trips to the daemon as it takes: `open` asks thrice for its size.

        Raises OSError.
        """
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces: list[bytes] = []
            while piece := os.read(file, _PIECE):
                pieces.append(piece)
        finally:
            os.close(file)
        return b"".join(pieces)

    def read_json(self, path: str) -> Any:
        """The JSON value in a file of the tree. Raises OSError; fails where the file holds none."""
        data = self.read(path)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Failure(f"{path}: is no JSON: {error}", errno.EBADMSG) from None

    def read_json_array(self, path: str) -> Iterator[Any]:
        """The values of a JSON array in a file of the tree, as they are read. Raises as `read_json`."""
        from imgfs.cli.array import read_array

        with open(path, encoding="utf-8") as file:
            try:
                yield from read_array(file)
            except (ValueError, RecursionError) as error:
                raise Failure(f"{path}: is no JSON array: {error}", errno.EBADMSG) from None

    def reason(self, *paths: str) -> str | None:
        """The daemon's sentence on what failed last, from the first of `paths` that has one."""
        for path in paths:
            try:
                return os.getxattr(path, "user.imgfs.error").decode(errors="replace")
            except OSError:
                continue
        return None

    def failure(self, error: OSError, digest: str, subject: str, *paths: str) -> Failure:
        """The failure of an operation on the image `digest`, in the daemon's words where it left some on `paths`.

        Python calls again what a stopping daemon has interrupted, and then finds no tree: that is told as such.
        """
        if gone := self._gone(error, subject):
            return gone
        more = f"`imgfs status {subject}` and {self.log}"
        return from_os_error(error, subject, self.reason(*paths, self.image(digest)), more)

    def snapshot_failure(self, error: OSError, id: str) -> Failure:
        """The failure of an operation on a snapshot, in the daemon's words where its directory has some."""
        subject = f"snapshot {id}"
        return self._gone(error, subject) or from_os_error(error, subject, self.reason(self.snapshot(id)), self.log)

    def container_failure(self, error: OSError, id: str) -> Failure:
        """The failure of an operation on a container, in the daemon's words where its directory has some."""
        subject = f"container {id}"
        return self._gone(error, subject) or from_os_error(error, subject, self.reason(self.container(id)), self.log)

    def blob_failure(self, error: OSError, path: str, subject: str) -> Failure:
        """The failure of an operation on a blob, an ingest or a layer's tar, in the daemon's words if it left some."""
        return self._gone(error, subject) or from_os_error(error, subject, self.reason(path), self.log)

    def _gone(self, error: OSError, subject: str) -> Failure | None:
        """The failure where the tree is or was unmounted meanwhile; one whose daemon died stays behind, dead."""
        if error.errno not in (errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED) or not self._is_going(error):
            return None
        return Failure(f"{subject}: the daemon is stopping; `imgfs mount {self.path}` starts it again", errno.EINTR)

    def _is_going(self, failure: OSError) -> bool:
        """Whether the tree is there no more, or answers that it will not be soon."""
        try:
            os.stat(f"{self.path}/.imgfs/version")
        except OSError as error:
            return error.errno == errno.ENOENT
        return failure.errno == errno.ENOTCONN

    def _below(self, prefix: str) -> Iterator[RegisteredName]:
        try:
            with os.scandir(self.link(prefix)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            return  # its last name went while this one walked
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_symlink():
                yield from _registered(name, entry)
            elif not is_digest(name) and entry.is_dir():
                yield from self._below(name)


def _registered(name: str, entry: os.DirEntry[str]) -> Iterator[RegisteredName]:
    try:
        digest = os.readlink(entry.path).rpartition("/")[2]
        yield RegisteredName(name, digest, entry.stat(follow_symlinks=False).st_mtime_ns)
    except FileNotFoundError:
        return


def _unmounted(path: str, error: OSError) -> Failure:
    number = error.errno or errno.EIO
    if number in (errno.ENOENT, errno.ENOTDIR):
        reason = f"no tree is mounted there; `imgfs mount {path}` mounts one, --mountpoint names another"
        return Failure(f"{path}: {reason}", errno.ENODEV)
    if number in (errno.ENOTCONN, errno.ECONNABORTED):
        return Failure(f"{path}: its daemon is gone; `imgfs mount {path}` mounts it anew", number)
    if number == errno.EACCES:
        reason = "no permission; be root or the user who mounted it, or open it with `access` in the configuration"
        return Failure(f"{path}: {reason}", number)
    return from_os_error(error, path)
