"""`imgfs tag` and `imgfs rm`: register and remove names. Neither changes content."""

from __future__ import annotations

import errno
import os

import click

from imgfs.cli.failure import Failure, from_os_error, raise_first
from imgfs.cli.images.lookup import find, is_digest_like, new_name, registered_name
from imgfs.cli.options import Command, complete_name, image_argument, mountpoint_option, quiet_option
from imgfs.cli.tree import Tree
from imgfs.errors import Invalid
from imgfs.oci.digest import is_digest


@click.command(cls=Command)
@image_argument
@click.argument("name", metavar="NAME")
@mountpoint_option
@quiet_option
def tag(image: str, name: str, mountpoint: str, *, quiet: bool) -> None:
    """Give IMAGE another name.

    NAME is either a single word (`mytool`), which is local and never looked up at a registry, or a full reference. If
    NAME exists, it is replaced. Nothing is pushed. IMAGE may be an unknown digest: imgfs asks for it on the first read.
    """
    tree = Tree.open(mountpoint)
    chosen = _checked(name, quiet=quiet)
    digest = image if is_digest(image) else find(tree, image, quiet=quiet).digest
    register(tree, chosen, digest, f"{image} as {chosen}")


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_name)
@mountpoint_option
@quiet_option
def rm(names: tuple[str, ...], mountpoint: str, *, quiet: bool) -> None:
    """Remove names; the images' content stays.

    If a name cannot be removed, the command reports it and continues with the others. The exit code is that of the
    first failure.
    """
    tree = Tree.open(mountpoint)
    failures: list[Failure] = []
    for name in names:
        try:
            _remove(tree, name, quiet=quiet)
        except Failure as failure:
            failures.append(failure)
    raise_first(failures)


def register(tree: Tree, name: str, digest: str, subject: str) -> None:
    """Register `name` for `digest`, replacing an existing one. Sends no request and does not check that it is local."""
    try:
        os.setxattr(tree.images, "user.imgfs.tag", os.fsencode(f"{name} {digest}"))
    except OSError as error:
        reason = None
        if error.errno == errno.EINVAL:
            reason = f"{name}: is not an image name; expected host/repository:tag or a single word"
        raise from_os_error(error, subject, reason, tree.log) from None


def _checked(name: str, *, quiet: bool) -> str:
    if is_digest_like(name):
        raise Failure(f"{name}: is a digest and cannot be a name; expected host/repository:tag or a word", errno.EINVAL)
    return new_name(name, quiet=quiet)


def _remove(tree: Tree, text: str, *, quiet: bool) -> None:
    if is_digest_like(text):
        raise Failure(f"{text}: is a digest, not a name; `imgfs status {text}` shows its names", errno.EINVAL)
    try:
        name = registered_name(tree, text, quiet=quiet)
        os.unlink(tree.link(name))
    except Invalid as error:
        raise Failure(error.message, error.errno) from None
    except OSError as error:
        raise from_os_error(error, text, None, tree.log) from None
