"""images/: names as symbolic links, in directories for hosts and repositories.

Every possible host and repository is a directory on lookup; only directories that contain names are listed. A lookup of
an unregistered `name:tag` or `name@digest` below a host asks its registry; no other lookup does. Unlisted files list
the content of a registry (`list_file`).
"""

from __future__ import annotations

import errno
import os
import posixpath

import pyfuse3

from imgfs.errors import AlreadyExists, ImgfsError, Invalid, NotFound, NotPermitted
from imgfs.filename import with_colons
from imgfs.fs.caller import Caller
from imgfs.fs.files import ReportFile
from imgfs.fs.images.image import ImageDirectory
from imgfs.fs.node import Directory, Link, Listing, Node, Shown, missing
from imgfs.fs.subsystems import ImageSubsystems
from imgfs.fs.xattrs import as_error
from imgfs.images.names import HOST_ALONE, Name, check_name, reference_of
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest
from imgfs.oci.reference import Reference, expand_familiar, is_host, is_repository_part
from imgfs.transfer.listings import Listings

TAGS = "_tags"
CATALOG = "_catalog"


class NotEmpty(ImgfsError):
    """rmdir of a directory that still holds names."""

    errno = errno.ENOTEMPTY


class NamesDirectory(Directory):
    """images/ (the prefix is empty), a host, or a part of a repository's name."""

    __slots__ = ("_prefix", "_subsystems")

    def __init__(self, subsystems: ImageSubsystems, prefix: str) -> None:
        super().__init__(f"images/{prefix}", subsystems.shown)
        self._subsystems = subsystems
        self._prefix = prefix

    def has_literally(self, name: str) -> bool:
        path, subsystems = self._path(name), self._subsystems
        return bool(subsystems.names.get(path) or path in subsystems.private or subsystems.names.below(path))

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        component = os.fsdecode(name)
        path = self._path(component)
        if not self._prefix and is_digest(component):
            return await self._image(Digest(component))
        subsystems = self._subsystems
        if found := self._link(path) or list_file(self._shown, subsystems.listings, self._prefix, component):
            return found
        if self._is_directory(path, component):
            return NamesDirectory(subsystems, path)
        reference = reference_of(path)
        if reference is None or not subsystems.is_resolving:
            raise missing(name)
        await caller.wait(lambda: subsystems.resolver.resolve(reference))
        # `repository:tag@digest` is recorded without the tag, because a digest makes the tag irrelevant.
        return self._registered(str(reference), name)

    async def entries(self, caller: Caller) -> Listing:
        listing: list[tuple[bytes, Node]] = []
        for component in self._subsystems.names.below(self._prefix):
            path = self._path(component)
            listing.append((component.encode(), self._link(path) or NamesDirectory(self._subsystems, path)))
        if not self._prefix:
            for digest in self._subsystems.names.digests():
                listing.append((digest.encode(), ImageDirectory(self._subsystems, digest)))
        return listing

    async def symlink(self, name: bytes, target: bytes, caller: Caller) -> Node:
        component = os.fsdecode(name)
        path = self._path(component)
        digest = await self._target(os.fsdecode(target), caller)
        if _is_nameable(path):
            await caller.wait(lambda: self._subsystems.resolver.register(path, digest))
        elif is_repository_part(component) or not self._prefix or _is_meant_as_name(component):
            raise self._malformed(path, component)
        elif path in self._subsystems.private:
            raise AlreadyExists(f"{path!r}: exists already")
        else:
            self._subsystems.private[path] = digest
        return self._registered(path, name)

    async def unlink(self, name: bytes, caller: Caller) -> None:
        path = self._path(os.fsdecode(name))
        if self._subsystems.private.pop(path, None) is None:
            await self._subsystems.names.remove(path)

    async def rmdir(self, name: bytes, caller: Caller) -> None:
        """Remove an empty directory. It is stored nowhere, so this always succeeds."""
        component = os.fsdecode(self.canonical(name))
        if is_digest(component):
            raise NotPermitted(f"images/{component}: is removed with its last name; remove the names")
        if self._subsystems.names.below(self._path(component)):
            raise NotEmpty(f"images/{self._path(component)}: holds names")

    async def rename(self, old: bytes, target: Node, new: bytes, flags: int, caller: Caller) -> None:
        if not isinstance(target, NamesDirectory) or flags & ~pyfuse3.RENAME_NOREPLACE:
            raise NotPermitted("an image name can only be moved within images/")
        names, private = self._subsystems.names, self._subsystems.private
        before, after = self._path(os.fsdecode(self.canonical(old))), target._path(os.fsdecode(new))
        if not _is_nameable(after):
            raise NotPermitted(f"image name {after[:200]!r}: expected host/repository:tag or a plain word")
        if flags & pyfuse3.RENAME_NOREPLACE and names.get(after):
            raise AlreadyExists(f"image {after}: is registered already")
        if before in private:
            await self._subsystems.resolver.register(after, private[before], replace=True)
            private.pop(before, None)
        elif names.get(before):
            await names.rename(before, after)
        else:
            raise NotPermitted(f"images/{before}: is a directory; only single names can be moved")

    async def xattrs(self) -> dict[bytes, bytes]:
        return as_error(self._subsystems.failures.get(f"images/{self._prefix}"))

    async def set_xattr(self, name: bytes, value: bytes, caller: Caller) -> None:
        """Set `user.imgfs.tag` on images/ to `NAME DIGEST`: register a name without a lookup at its registry."""
        text, _, digest = os.fsdecode(value).rpartition(" ")
        if self._prefix or name != b"user.imgfs.tag":
            raise self.refusal()
        await self._subsystems.resolver.register(text, Digest.parse(digest), replace=True)

    def _path(self, component: str) -> str:
        return f"{self._prefix}/{component}" if self._prefix else component

    def _link(self, path: str) -> Node | None:
        if name := self._subsystems.names.get(path):
            return NameLink(self._subsystems, name)
        if digest := self._subsystems.private.get(path):
            return PrivateLink(f"private/{path}", self._subsystems.shown, _link_target(path, digest))
        return None

    def _malformed(self, path: str, component: str) -> Invalid:
        """Return the error for a malformed name.

        It is also noted for the directory, since the caller gets only an errno.

        `ln -s <digest> images/mytool:1` finds a directory and makes the link in it.
        """
        error = Invalid(f"image name {path!r}: expected host/repository:tag, host/repository@digest or a plain word")
        if is_digest(component) and is_host(self._prefix):
            error = Invalid(f"image name {self._prefix!r}: {HOST_ALONE}")
        self._subsystems.failures.note(f"images/{self._prefix}", error)
        return error

    def _registered(self, path: str, name: bytes) -> Node:
        """Return the link of a name that was just registered. Raises NotFound if it was removed since."""
        link = self._link(path)
        if link is None:
            raise missing(name)
        return link

    def _is_directory(self, path: str, component: str) -> bool:
        if not self._prefix:
            return is_host(component)
        return is_repository_part(component) or bool(self._subsystems.names.below(path))

    async def _image(self, digest: Digest) -> Node:
        if not await self._subsystems.resolver.is_known(digest):
            raise NotFound(f"images/{digest}: no name and no known index refers to it; pull it by a name")
        return ImageDirectory(self._subsystems, digest)

    async def _target(self, text: str, caller: Caller) -> Digest:
        """Return the digest of a link's target: a digest, a path to a digest or to a name, or a reference."""
        last = with_colons(text.rpartition("/")[2])
        if is_digest(last):
            return Digest(last)
        for spelled in dict.fromkeys((text, with_colons(text))):
            if found := self._subsystems.names.get(self._followed(spelled)):
                return found.digest
        reference = _reference(self._followed(with_colons(text)))
        return await caller.wait(lambda: self._subsystems.resolver.resolve(reference))

    def _followed(self, text: str) -> str:
        """Return the name that a target leads to from the link's directory. A target with a host is returned unchanged.

        Below a host, `app:1` belongs to that registry, as it does for the kernel that follows the link, and not to
        Docker Hub.
        """
        images = self._subsystems.chains.rootfs.places.path("images")
        path = posixpath.normpath(posixpath.join(images, self._prefix, text))
        first, slash, _ = text.partition("/")
        if (slash and is_host(first)) or not path.startswith(f"{images}/"):
            return text
        return path.removeprefix(f"{images}/")


class NameLink(Link):
    """A registered name. Its target has as many `..` as the name has slashes."""

    __slots__ = ("_name", "_subsystems")

    keep = 0.0

    def __init__(self, subsystems: ImageSubsystems, name: Name) -> None:
        super().__init__(f"name/{name.name}", subsystems.shown, _link_target(name.name, name.digest), name.updated)
        self._subsystems = subsystems
        self._name = name.name

    async def attributes(self) -> pyfuse3.EntryAttributes:
        self._reload()
        return await super().attributes()

    async def readlink(self, caller: Caller) -> bytes:
        self._reload()
        return self._target

    async def change(self, fields: pyfuse3.SetattrFields, caller: Caller) -> None:
        """Refresh this name (`touch -h`)."""
        if not fields.update_mtime or fields.update_mode or fields.update_uid or fields.update_gid:
            raise self.refusal()
        if caller.uid not in (0, self._subsystems.shown.uid):
            # The kernel lets every user touch a symbolic link, because the mode of a link is always 0777.
            raise NotPermitted(f"image {self._name}: only root and the user who mounted may refresh it")
        await caller.wait(lambda: self._subsystems.resolver.refresh(self._name))

    def _reload(self) -> None:
        name = self._subsystems.names.get(self._name)
        if name is None:
            raise NotFound(f"image {self._name}: is not registered")
        self._target = _link_target(name.name, name.digest).encode()
        self._time = name.updated


class PrivateLink(Link):
    """A link with a temporary name that `ln -sfn` renames to its final name."""

    __slots__ = ()

    keep = 0.0


def _link_target(name: str, digest: Digest) -> str:
    return "../" * name.count("/") + digest


def _is_nameable(path: str) -> bool:
    """Whether the path may be registered as a name."""
    try:
        check_name(path)
    except Invalid:
        return False
    return True


def _is_meant_as_name(component: str) -> bool:
    """Whether `component` looks like a tag or a digest. Temporary names that tools make contain neither `:` nor `@`."""
    return not component.startswith(".") and (":" in component or "@" in component)


def _reference(text: str) -> Reference:
    """Parse a reference. A shortened digest would otherwise be taken for a tag of a repository `sha256`."""
    try:
        if text.rpartition("/")[2].partition(":")[0] in HEX_LENGTH:
            raise Invalid(text)
        return expand_familiar(text)
    except Invalid:
        raise Invalid(
            f"link target {text[:200]!r}: expected a digest, ../content/<digest>, a name or a reference"
        ) from None


def list_file(shown: Shown, listings: Listings, prefix: str, name: str) -> Node | None:
    """Return the file `name` of the directory `images/<prefix>`, or None if it is not a list."""
    host, _, repository = prefix.partition("/")
    key = f"images/{prefix}/{name}"
    if name == CATALOG and host and not repository:
        return ReportFile(key, shown, lambda: listings.repositories(host))
    if name == TAGS and repository:
        return ReportFile(key, shown, lambda: listings.tags(host, repository))
    return None
