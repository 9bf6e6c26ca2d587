"""`imgfs snapshot export`: a snapshot's own changes as an OCI layer, an uncompressed tar, to a file or a pipe."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from imgfs.cli.failure import Failure
from imgfs.cli.options import Command, mountpoint_option, quiet_option
from imgfs.cli.output import PIECE, progress, write_file, write_out
from imgfs.cli.snapshots.ids import complete_snapshot, existing
from imgfs.cli.tree import Tree


@click.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_snapshot)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE and print the layer's digest. FILE is there when all of it is, durably.",
)
@mountpoint_option
@quiet_option
def export(id: str, output: Path | None, mountpoint: str, *, quiet: bool) -> None:
    """Write a snapshot's own changes as a layer.

    An uncompressed tar in the OCI format: what it adds and changes, and whiteouts for what it removes. It goes to
    stdout, for a pipe or a file, or to FILE. The same changes are the same bytes; of an image's chain it is the very
    layer. One that is written to meanwhile is busy (exit code 7).
    """
    if output is None and sys.stdout.isatty():
        raise click.UsageError("a layer is nothing for a terminal; name a file with -o, or pipe it: | tar t")
    tree = Tree.open(mountpoint)
    id = existing(tree, id)
    # No progress without a file: who reads a pipe may write to the same terminal.
    with _layer(tree, id) as layer, progress(_size(layer), is_wanted=output is not None and not quiet) as draw:
        if output is None:
            write_out(_pieces(tree, id, layer), draw)
        else:
            click.echo(f"sha256:{write_file(_pieces(tree, id, layer), output, draw)}")


@contextmanager
def _layer(tree: Tree, id: str) -> Generator[BinaryIO]:
    try:
        file = open(f"{tree.snapshot(id)}/layer.tar", "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        os.lstat(tree.snapshot(id))
        raise Failure(f"snapshot {id}: has no layer of its own", errno.ENOENT) from None
    except OSError as error:
        raise tree.snapshot_failure(error, id) from None
    with file:
        yield file


def _size(layer: BinaryIO) -> int | None:
    return os.fstat(layer.fileno()).st_size or None


def _pieces(tree: Tree, id: str, layer: BinaryIO) -> Iterator[bytes]:
    """The layer, in pieces; a failure of it is told in the daemon's words, unlike one of who takes them."""
    while True:
        try:
            piece = layer.read(PIECE)
        except OSError as error:
            raise tree.snapshot_failure(error, id) from None
        if not piece:
            return
        yield piece
