"""`imgfs snapshot export`: write a snapshot's own changes as an OCI layer (an uncompressed tar)."""

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
    help="Write to FILE and print the layer's digest. FILE appears when it is complete and durable.",
)
@mountpoint_option
@quiet_option
def export(id: str, output: Path | None, mountpoint: str, *, quiet: bool) -> None:
    """Write a snapshot's own changes as a layer.

    The layer is an uncompressed tar in the OCI format: added and changed files, and whiteouts for removed files. It is
    written to stdout or to FILE. The same changes produce the same bytes; for a chain of an image the result is the
    image's layer. The command fails with exit code 7 if the snapshot is written to meanwhile.
    """
    if output is None and sys.stdout.isatty():
        raise click.UsageError("a layer is not written to a terminal; name a file with -o, or use a pipe: | tar t")
    tree = Tree.open(mountpoint)
    id = existing(tree, id)
    # No progress without a file: the reader of the pipe may write to the same terminal.
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
    """Yield the layer in pieces. Only read errors become a Failure with the daemon's reason, not the consumer's."""
    while True:
        try:
            piece = layer.read(PIECE)
        except OSError as error:
            raise tree.snapshot_failure(error, id) from None
        if not piece:
            return
        yield piece
