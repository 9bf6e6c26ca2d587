"""`imgfs snapshot export`: a snapshot's own changes as an OCI layer, an uncompressed tar, to a file or a pipe."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.options import Command, mountpoint_option, quiet_option
from imgfs.cli.snapshot_ids import complete_snapshot, existing
from imgfs.cli.tree import Tree
from imgfs.content.durable import fsync_path, publish, temporary_name

PIECE = 1 << 20

Draw = Callable[[int], None]
"""Told how many bytes are written."""


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
def export(id: str, output: Path | None, mountpoint: str, quiet: bool) -> None:
    """Write a snapshot's own changes as a layer.

    An uncompressed tar in the OCI format: what it adds and changes, and whiteouts for what it removes. It goes to
    stdout, for a pipe or a file, or to FILE. The same changes are the same bytes; of an image's chain it is the very
    layer. One that is written to meanwhile is busy (exit code 7).
    """
    if output is None and sys.stdout.isatty():
        raise click.UsageError("a layer is nothing for a terminal; name a file with -o, or pipe it: | tar t")
    tree = Tree.open(mountpoint)
    id = existing(tree, id)
    with _layer(tree, id) as layer, _progress(layer, output is not None and not quiet) as draw:
        if output is None:
            _write_out(_pieces(tree, id, layer), draw)
        else:
            click.echo(f"sha256:{_write_file(_pieces(tree, id, layer), output, draw)}")


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


def _write(pieces: Iterator[bytes], file: BinaryIO, draw: Draw) -> str:
    """Returns the SHA-256 in hex."""
    running, done = hashlib.sha256(), 0
    for piece in pieces:
        file.write(piece)
        running.update(piece)
        done += len(piece)
        draw(done)
    return running.hexdigest()


def _write_out(pieces: Iterator[bytes], draw: Draw) -> None:
    """To stdout; flushed here, where a reader that is gone is no news."""
    try:
        _write(pieces, sys.stdout.buffer, draw)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _unwritten(error, "stdout") from None


def _write_file(pieces: Iterator[bytes], path: Path, draw: Draw) -> str:
    """To a file under its name when it is whole; what is there and not regular (a pipe, /dev/null) is written to."""
    final = Path(os.path.realpath(path))
    try:
        if final.exists() and not stat.S_ISREG(final.stat().st_mode):
            with final.open("wb") as file:
                return _write(pieces, file, draw)
        return _write_whole(pieces, final, draw)
    except OSError as error:
        raise _unwritten(error, str(path)) from None


def _write_whole(pieces: Iterator[bytes], final: Path, draw: Draw) -> str:
    temporary = final.parent / temporary_name()
    try:
        with temporary.open("xb") as file:
            digest = _write(pieces, file, draw)
        fsync_path(temporary)
        publish(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest


def _unwritten(error: OSError, where: str) -> Exception:
    """A reader that has seen enough is no failure to tell of: the program ends quietly."""
    return error if error.errno == errno.EPIPE else from_os_error(error, where)


@contextmanager
def _progress(layer: BinaryIO, is_wanted: bool) -> Generator[Draw]:
    """Only with a file: who reads a pipe may write to the same terminal."""
    if not is_wanted or not sys.stderr.isatty():
        yield lambda done: None
        return
    from imgfs.cli.progress import byte_progress

    with byte_progress(os.fstat(layer.fileno()).st_size or None) as draw:
        yield draw
