"""The mounted tree as the command line uses it: paths, names, status, and the daemon's error messages.

This module owns the knowledge of which file answers which question. A method asks a registry only if its docstring
says so.
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


class ImagePart(TypedDict):
    """One blob of an image in status.json (transfer/image_status.py says what the keys mean)."""

    kind: str
    digest: str
    size: int
    media_type: str
    state: str
    offset: int
    diff_id: str | None
    where: str | None
    error: str | None


class ImageStatus(TypedDict):
    """An image's status.json."""

    digest: str
    names: list[str]
    platform: str
    complete: bool
    lazy: bool
    why: str
    error: str | None
    parts: list[ImagePart]


class TransferDocument(TypedDict):
    """A file of .imgfs/transfers/ (transfer/transfer_status.py says what the keys mean)."""

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
    """A mounted tree at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str) -> Tree:
        """Return the tree at `path`. Raises Failure, with a cure, if no daemon answers there."""
        tree = cls(os.path.abspath(path))
        try:
            os.statvfs(tree.path)  # stat(2) of a dead mount can be answered from the kernel's cache; statfs(2) cannot
            os.stat(f"{tree.path}/.imgfs/version")
        except OSError as error:
            raise _unmounted(tree.path, error) from None
        return tree

    @property
    def log(self) -> str:
        """The path of the daemon's log in the tree."""
        return f"{self.path}/.imgfs/log"

    def image(self, digest: str) -> str:
        """The directory of an image."""
        return f"{self.path}/images/{digest}"

    def pull_file(self, digest: str) -> str:
        """The unlisted file that pulls the whole image when it is opened."""
        return f"{self.image(digest)}/pull"

    def pull(self, digest: str) -> str:
        """Pull the whole image. Returns the chain ID when all of it is durable. Raises OSError."""
        return self.read(self.pull_file(digest)).decode().strip()

    def push_file(self, digest: str, name: str, *, all_platforms: bool, referrers: bool) -> str:
        """The unlisted file that pushes an image to `name` when it is opened; its content is the report."""
        options = ",".join(word for word, on in (("all", all_platforms), ("referrers", referrers)) if on)
        return f"{self.image(digest)}/push{':' if options else ''}{options}/{name}"

    def referrers(self, digest: str) -> str:
        """The directory of an image's referrers."""
        return f"{self.image(digest)}/referrers"

    def referrers_file(self, digest: str, artifact_type: str | None) -> str:
        """The unlisted file that asks the registries for an image's referrers, optionally of one artifact type."""
        of_type = "" if artifact_type is None else f":{quote(artifact_type, safe='')}"
        return f"{self.referrers(digest)}/refresh{of_type}"

    def list_file(self, host: str, repository: str) -> str:
        """The unlisted file that asks a registry for the tags of a repository, or for its repositories."""
        return f"{self.link(host)}/{repository}/_tags" if repository else f"{self.link(host)}/_catalog"

    @property
    def images(self) -> str:
        """The directory of all names."""
        return f"{self.path}/images"

    def link(self, name: str) -> str:
        """The symbolic link of a name. Looking up an unregistered name asks its registry."""
        return f"{self.path}/images/{name}"

    def blob(self, digest: str) -> str:
        """The file of a blob. Opening a blob that is not local fetches it."""
        return f"{self.path}/content/{digest}"

    def ingest(self, ref: str) -> str:
        """The file of an ingest. `ref` has no `/`."""
        return f"{self.path}/content/ingest/{ref}"

    def layer(self, diff_id: str) -> str:
        """The unlisted file with the uncompressed tar of a layer in a known chain."""
        return f"{self.path}/.imgfs/layers/{diff_id}"

    def lease(self, id: str) -> str:
        """The directory of a lease."""
        return f"{self.path}/.imgfs/leases/{id}"

    def discard(self, digests: Sequence[str]) -> None:
        """Remove the blobs among `digests` (a few hundred at most) that nothing refers to. Raises OSError."""
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
        """The directory of a snapshot, or the link of a view. `id` is a chain ID, a name, or `active/<key>`."""
        return f"{self.path}/snapshots/{id}"

    def snapshot_rootfs(self, id: str) -> str:
        """The rootfs of a snapshot, without a colon below the mountpoint. Walking into it mounts the view."""
        return f"{self.snapshot(without_colons(id))}/rootfs"

    @property
    def containers(self) -> str:
        """The directory of containers."""
        return f"{self.path}/containers"

    def container_states(self, *, running: bool) -> str:
        """The unlisted file with the states of all containers, or of the running ones."""
        return f"{self.containers}/{'_running' if running else '_all'}"

    def container(self, id: str) -> str:
        """The directory of a container."""
        return f"{self.containers}/{id}"

    def deleted_container(self, id: str) -> str:
        """The file with the exit status of a deleted container."""
        return f"{self.path}/.imgfs/deleted/containers/{id}"

    def names(self) -> Iterator[RegisteredName]:
        """Yield every registered name, sorted."""
        return self._below("")

    def is_registered(self, name: str) -> bool:
        """Return whether `name` is listed in its directory. Sends no request."""
        parent, _, last = name.rpartition("/")
        try:
            with os.scandir(self.link(parent)) as entries:
                return any(entry.name == last and entry.is_symlink() for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def digests(self) -> list[str]:
        """Return the digest of every image that has a name, sorted."""
        return sorted(name for name in os.listdir(f"{self.path}/images") if is_digest(name))

    def status(self, digest: str) -> ImageStatus:
        """Return an image's status.json. Raises OSError; FileNotFoundError if the image is unknown."""
        return cast("ImageStatus", self.read_json(f"{self.image(digest)}/status.json"))

    def transfers(self) -> list[TransferDocument]:
        """Return the running transfers, oldest first. Raises OSError."""
        found: list[TransferDocument] = []
        for name in os.listdir(f"{self.path}/.imgfs/transfers"):
            try:
                found.append(cast("TransferDocument", self.read_json(f"{self.path}/.imgfs/transfers/{name}")))
            except FileNotFoundError:
                continue  # the transfer ended after the directory was read
        return sorted(found, key=lambda one: (one["started"], one["name"]))

    def read(self, path: str) -> bytes:
        """Return the content of a file of the tree. Raises OSError.

        Uses os.read, because `open` calls fstat and seek before it reads: three more requests to the daemon.
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
        """Return the JSON value in a file of the tree. Raises OSError, and Failure if the file is not JSON."""
        data = self.read(path)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Failure(f"{path}: is not JSON: {error}", errno.EBADMSG) from None

    def read_json_array(self, path: str) -> Iterator[Any]:
        """Yield the values of a JSON array in a file of the tree. Raises as `read_json` does."""
        from imgfs.cli.array import read_array

        with open(path, encoding="utf-8") as file:
            try:
                yield from read_array(file)
            except (ValueError, RecursionError) as error:
                raise Failure(f"{path}: is not a JSON array: {error}", errno.EBADMSG) from None

    def reason(self, *paths: str) -> str | None:
        """Return the daemon's last error message (user.imgfs.error) from the first of `paths` that has one."""
        for path in paths:
            try:
                return os.getxattr(path, "user.imgfs.error").decode(errors="replace")
            except OSError:
                continue
        return None

    def failure(self, error: OSError, digest: str, subject: str, *paths: str) -> Failure:
        """Make a Failure for an operation on the image `digest`, with the daemon's message if one of `paths` has it.

        Python retries a call that a stopping daemon interrupted, and the retry finds no tree. The message says so.
        """
        if gone := self._gone(error, subject):
            return gone
        more = f"`imgfs status {subject}` and {self.log}"
        return from_os_error(error, subject, self.reason(*paths, self.image(digest)), more)

    def snapshot_failure(self, error: OSError, id: str) -> Failure:
        """Make a Failure for an operation on a snapshot, with the daemon's message if its directory has one."""
        subject = f"snapshot {id}"
        return self._gone(error, subject) or from_os_error(error, subject, self.reason(self.snapshot(id)), self.log)

    def container_failure(self, error: OSError, id: str) -> Failure:
        """Make a Failure for an operation on a container, with the daemon's message if its directory has one."""
        subject = f"container {id}"
        return self._gone(error, subject) or from_os_error(error, subject, self.reason(self.container(id)), self.log)

    def blob_failure(self, error: OSError, path: str, subject: str) -> Failure:
        """Make a Failure for an operation on a blob, ingest or layer tar, with the daemon's message if there is one."""
        return self._gone(error, subject) or from_os_error(error, subject, self.reason(path), self.log)

    def _gone(self, error: OSError, subject: str) -> Failure | None:
        """Return a Failure if the tree is being or has been unmounted; None otherwise."""
        if error.errno not in (errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED) or not self._is_going(error):
            return None
        return Failure(f"{subject}: the daemon is stopping; `imgfs mount {self.path}` starts it again", errno.EINTR)

    def _is_going(self, failure: OSError) -> bool:
        """Return whether the tree is unmounted, or its daemon answers that it is stopping."""
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
            return  # the last name below was removed during the walk
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
        return Failure(f"{path}: its daemon has ended; `imgfs mount {path}` mounts it again", number)
    if number == errno.EACCES:
        reason = "no permission; use root or the user who mounted it, or set `access` in the configuration"
        return Failure(f"{path}: {reason}", number)
    return from_os_error(error, path)
