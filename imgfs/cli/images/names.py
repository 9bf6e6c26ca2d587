"""`imgfs tag` and `imgfs rm`: give and take names. Neither touches content."""

from __future__ import annotations

import errno
import os

import click

from imgfs.cli.failure import Failure, from_os_error, raise_first
from imgfs.cli.images.naming import find, is_digest_like, new_name, registered_name
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
    """Give IMAGE one more name.

    NAME is a word (`mytool`), which stays local and is never asked for at a registry, or a registry's name, which
    `imgfs pull --refresh` asks for. If NAME meant another image, it means IMAGE now. Nothing is pushed anywhere. IMAGE
    may be a digest that nobody here has seen: it is asked for when somebody reads it.
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
    """Remove names; what they stood for stays here.

    A name that cannot be removed is reported and the others go all the same; the exit code is that of the first.
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
    """Let `name` mean `digest` from now on. Asks no registry, and nobody whether the digest is here."""
    try:
        os.setxattr(tree.images, "user.imgfs.tag", os.fsencode(f"{name} {digest}"))
    except OSError as error:
        reason = None
        if error.errno == errno.EINVAL:
            reason = f"{name}: is no image name; expected host/repository:tag or a plain word"
        raise from_os_error(error, subject, reason, tree.log) from None


def _checked(name: str, *, quiet: bool) -> str:
    if is_digest_like(name):
        raise Failure(f"{name}: is a digest and cannot be a name; expected host/repository:tag or a word", errno.EINVAL)
    return new_name(name, quiet=quiet)


def _remove(tree: Tree, text: str, *, quiet: bool) -> None:
    if is_digest_like(text):
        raise Failure(f"{text}: is a digest and no name; `imgfs status {text}` shows its names", errno.EINVAL)
    try:
        name = registered_name(tree, text, quiet=quiet)
        os.unlink(tree.link(name))
    except Invalid as error:
        raise Failure(error.message, error.errno) from None
    except OSError as error:
        raise from_os_error(error, text, None, tree.log) from None
