"""What people type for an image: a digest or its beginning, a registered local name, a familiar name (`alpine:3.20`).

Owns the order of the three and says on stderr what a familiar name stands for.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from imgfs.cli.failure import Failure, from_os_error, tell
from imgfs.cli.tree import Tree
from imgfs.oci.digest import is_digest
from imgfs.oci.reference import expand_familiar, is_host


@dataclass(frozen=True, slots=True)
class Found:
    """An image: its digest, and the name that led to it unless it was the digest itself."""

    digest: str
    name: str | None = None

    @property
    def subject(self) -> str:
        """What to call it in sentences and commands."""
        return self.name or self.digest


def full_name(tree: Tree, text: str, *, quiet: bool = False) -> str:
    """The name below images/ that `text` stands for: a registered local one wins. Raises Invalid.

    Asks no registry.
    """
    if text and "/" not in text and tree.is_registered(text):
        return text
    return _familiar(text, quiet=quiet)


def new_name(text: str, *, quiet: bool = False) -> str:
    """The name below images/ to register for `text`: a word stays local, the rest is completed. Raises Invalid."""
    if text and "/" not in text and not is_host(text):
        return text
    return _familiar(text, quiet=quiet)


def find(tree: Tree, text: str, *, quiet: bool = False, refresh: bool = False) -> Found:
    """The image that `text` stands for. An unregistered name is asked for at its registry and registered.

    With `refresh` a registered one is asked for too. Raises Invalid; fails with the daemon's reason.
    """
    if is_digest_like(text):
        return _by_digest(tree, text)
    name = full_name(tree, text, quiet=quiet)
    path = tree.link(name)
    try:
        if refresh and tree.is_registered(name):
            os.utime(path, follow_symlinks=False)
        return Found(_digest_behind(path), name)
    except OSError as error:
        raise _unresolved(tree, name, error) from None


def find_registered(tree: Tree, text: str, *, quiet: bool = False) -> Found:
    """As `find`, but no registry is asked: what is not registered here is not found."""
    if is_digest_like(text):
        return _by_digest(tree, text)
    name = registered_name(tree, text, quiet=quiet)
    return Found(_digest_behind(tree.link(name)), name)


def registered_name(tree: Tree, text: str, *, quiet: bool = False) -> str:
    """The registered name that `text` stands for; not found where there is none. Asks no registry. Raises Invalid."""
    name = full_name(tree, text, quiet=quiet)
    if not tree.is_registered(name):
        raise Failure(f"{name}: is not registered here; `imgfs ls` shows what is", errno.ENOENT)
    return name


def is_digest_like(text: str) -> bool:
    """Whether `text` begins as a digest does: then it is meant as one, whole, shortened or mistyped."""
    return text.startswith(("sha256:", "sha512:"))


def _familiar(text: str, *, quiet: bool) -> str:
    name = str(expand_familiar(text))
    if name != text and not quiet:
        tell(f"{text} stands for {name}")
    return name


def _by_digest(tree: Tree, text: str) -> Found:
    """The image of a digest, or of the beginning of one as tables show it, if only one named image has that."""
    digest = text if is_digest(text) else _only(text, [one for one in tree.digests() if one.startswith(text)])
    try:
        os.stat(tree.image(digest))
    except FileNotFoundError:
        raise Failure(
            f"{digest}: no image here mentions it; `imgfs pull HOST/REPOSITORY@{digest}` says where from", errno.ENOENT
        ) from None
    return Found(digest)


def _only(text: str, digests: list[str]) -> str:
    if not digests:
        raise Failure(f"{text}: no named image has a digest that begins so; `imgfs ls` shows them", errno.ENOENT)
    if len(digests) > 1:
        raise Failure(f"{text}: {len(digests)} digests begin so; write more of it", errno.EINVAL)
    return digests[0]


def _digest_behind(path: str) -> str:
    return os.readlink(path).rpartition("/")[2]


def _unresolved(tree: Tree, name: str, error: OSError) -> Failure:
    """The reason on the host's directory is that of its last failed lookup: an absence must be of this very name."""
    reason = tree.reason(tree.link(name.partition("/")[0]))
    if error.errno == errno.ENOENT and name not in (reason or ""):
        reason = f"{name}: not found, and no registry was asked (see `resolve` in {tree.path}/.imgfs/config)"
    return from_os_error(error, name, reason, tree.log)
