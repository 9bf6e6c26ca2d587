"""`imgfs pull`: one image, all of it, durably, with progress while it comes."""

from __future__ import annotations

import click

from imgfs.cli.images.bringing import bring
from imgfs.cli.images.naming import find
from imgfs.cli.options import Command, image_argument, mountpoint_option, quiet_option
from imgfs.cli.tree import Tree


@click.command(cls=Command)
@image_argument
@mountpoint_option
@click.option("--refresh", is_flag=True, help="Ask the registry what the name stands for now, though it is known here.")
@quiet_option
def pull(image: str, mountpoint: str, *, refresh: bool, quiet: bool) -> None:
    """Get the whole of IMAGE here and print its digest.

    IMAGE is a name (`alpine:3.20` stands for docker.io/library/alpine:3.20), a registered local name, or a digest. On
    return the image survives a power cut and needs no registry. What is here already is not fetched again; what
    Ctrl-C interrupts goes on where it was when somebody asks again.
    """
    tree = Tree.open(mountpoint)
    found = find(tree, image, quiet=quiet, refresh=refresh)
    bring(tree, found, lambda: tree.pull(found.digest), quiet=quiet)
    click.echo(found.digest)
