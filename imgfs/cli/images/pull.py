"""`imgfs pull`: fetch a whole image durably, with progress."""

from __future__ import annotations

import click

from imgfs.cli.images.lookup import find
from imgfs.cli.images.waiting import bring
from imgfs.cli.options import Command, image_argument, mountpoint_option, quiet_option
from imgfs.cli.tree import Tree


@click.command(cls=Command)
@image_argument
@mountpoint_option
@click.option("--refresh", is_flag=True, help="Ask the registry what the name stands for, even if it is registered.")
@quiet_option
def pull(image: str, mountpoint: str, *, refresh: bool, quiet: bool) -> None:
    """Fetch all of IMAGE and print its digest.

    IMAGE is a name (`alpine:3.20` stands for docker.io/library/alpine:3.20), a registered local name, or a digest. When
    the command returns, the image survives a power cut and needs no registry. Local parts are not fetched again. A pull
    that was interrupted continues where it stopped.
    """
    tree = Tree.open(mountpoint)
    found = find(tree, image, quiet=quiet, refresh=refresh)
    bring(tree, found, lambda: tree.pull(found.digest), quiet=quiet)
    click.echo(found.digest)
