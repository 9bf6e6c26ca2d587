"""Resolve what users type for an image: a digest or its prefix, a registered name, a familiar name (`alpine:3.20`).

This module owns the order of the three and prints on stderr what a familiar name stands for.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from imgfs.cli.failure import Failure, from_os_error, report_line
from imgfs.cli.tree import Tree
from imgfs.oci.digest import is_digest
from imgfs.oci.reference import expand_familiar, is_host


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """An image that the user named: its digest, and its name unless the user typed the digest."""

    digest: str
    name: str | None = None

    @property
    def subject(self) -> str:
        """The name or digest to use in messages."""
        return self.name or self.digest


def full_name(tree: Tree, text: str, *, quiet: bool = False) -> str:
    """Return the name below images/ that `text` stands for. A registered local name wins. Raises Invalid.

    Sends no request.
    """
    if text and "/" not in text and tree.is_registered(text):
        return text
    return _familiar(text, quiet=quiet)


def new_name(text: str, *, quiet: bool = False) -> str:
    """Return the name below images/ to register; a word is local, other text is completed. Raises Invalid."""
    if text and "/" not in text and not is_host(text):
        return text
    return _familiar(text, quiet=quiet)


def find(tree: Tree, text: str, *, quiet: bool = False, refresh: bool = False) -> ChosenImage:
    """Return the image that `text` stands for. The registry of an unregistered name is asked, and the name registered.

    With `refresh` the registry of a registered name is asked too. Raises Invalid; Failure with the daemon's reason.
    """
    if is_digest_like(text):
        return _by_digest(tree, text)
    name = full_name(tree, text, quiet=quiet)
    path = tree.link(name)
    try:
        if refresh and tree.is_registered(name):
            os.utime(path, follow_symlinks=False)
        return ChosenImage(_digest_behind(path), name)
    except OSError as error:
        raise _unresolved(tree, name, error) from None


def find_registered(tree: Tree, text: str, *, quiet: bool = False) -> ChosenImage:
    """Return the image that `text` stands for, without a request: an unregistered name is not found."""
    if is_digest_like(text):
        return _by_digest(tree, text)
    name = registered_name(tree, text, quiet=quiet)
    return ChosenImage(_digest_behind(tree.link(name)), name)


def registered_name(tree: Tree, text: str, *, quiet: bool = False) -> str:
    """Return the registered name that `text` stands for, without a request. Raises Invalid; Failure if unregistered."""
    name = full_name(tree, text, quiet=quiet)
    if not tree.is_registered(name):
        raise Failure(f"{name}: is not registered; `imgfs ls` lists the registered names", errno.ENOENT)
    return name


def is_digest_like(text: str) -> bool:
    """Return whether `text` starts as a digest does. Then it is treated as a digest: whole, shortened or mistyped."""
    return text.startswith(("sha256:", "sha512:"))


def _familiar(text: str, *, quiet: bool) -> str:
    name = str(expand_familiar(text))
    if name != text and not quiet:
        report_line(f"{text} stands for {name}")
    return name


def _by_digest(tree: Tree, text: str) -> ChosenImage:
    """Return the image of a digest, or of a digest prefix if exactly one named image has it."""
    digest = text if is_digest(text) else _only(text, [one for one in tree.digests() if one.startswith(text)])
    try:
        os.stat(tree.image(digest))
    except FileNotFoundError:
        raise Failure(
            f"{digest}: is unknown; `imgfs pull HOST/REPOSITORY@{digest}` names the registry to fetch it from",
            errno.ENOENT,
        ) from None
    return ChosenImage(digest)


def _only(text: str, digests: list[str]) -> str:
    if not digests:
        raise Failure(f"{text}: no named image has a digest with this prefix; `imgfs ls` lists them", errno.ENOENT)
    if len(digests) > 1:
        raise Failure(f"{text}: {len(digests)} digests have this prefix; give more digits", errno.EINVAL)
    return digests[0]


def _digest_behind(path: str) -> str:
    return os.readlink(path).rpartition("/")[2]


def _unresolved(tree: Tree, name: str, error: OSError) -> Failure:
    """Make the Failure of a lookup. The host's directory keeps the reason of its last failed lookup only, so a NotFound
    reason is used only if it names this name.
    """
    reason = tree.reason(tree.link(name.partition("/")[0]))
    if error.errno == errno.ENOENT and name not in (reason or ""):
        reason = f"{name}: not found, and no registry was asked (see `resolve` in {tree.path}/.imgfs/config)"
    return from_os_error(error, name, reason, tree.log)
