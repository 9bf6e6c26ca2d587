"""`imgfs import`: read images from an OCI layout or a docker-archive, verify them, and register their names last."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from imgfs.cli.failure import Failure, from_os_error, report_line
from imgfs.cli.images.names import register
from imgfs.cli.options import Command, mountpoint_option, quiet_option
from imgfs.cli.output import progress
from imgfs.cli.silence import silent
from imgfs.cli.tree import Tree
from imgfs.errors import ImgfsError, Truncated

if TYPE_CHECKING:
    from imgfs.archives.contents import Contents
    from imgfs.archives.importing import Imported
    from imgfs.archives.layout import Listed
    from imgfs.cli.archives.mount_store import MountStore
    from imgfs.layers.compression import Compressions


@click.command("import", cls=Command)
@click.argument("source", metavar="SOURCE", type=click.Path(allow_dash=True))
@click.argument("name", metavar="[NAME]", required=False)
@mountpoint_option
@quiet_option
def import_(source: str, name: str | None, mountpoint: str, *, quiet: bool) -> None:
    """Bring in images from a file, a pipe or a directory.

    SOURCE is a tar, possibly compressed (`-` is stdin), or a directory. It is an OCI image layout or the output of
    `docker save`. Digests, sizes and the diff IDs of layers are verified. Names come from the archive; NAME names a
    single image, or is the repository of several. Names are registered last, replacing existing ones, and printed with
    their digests.

    No registry is asked, neither now nor when the images are used. Local blobs are skipped. An interrupted import
    continues when it is repeated.
    """
    if source == "-" and sys.stdin.isatty():
        raise click.UsageError(
            "an archive is not read from a terminal; name a file, or use a pipe: docker save X | imgfs import -"
        )
    from imgfs.cli.archives.mount_store import leased_store
    from imgfs.cli.archives.names import check_own

    if name is not None:
        check_own(name)
    tree = Tree.open(mountpoint)
    told: set[str] = set()

    def waits(ref: str) -> None:
        if not quiet and not told:
            report_line(f"another writer has {ref} open, possibly an import of the same archive; waiting")
        told.add(ref)

    with leased_store(tree, waits) as store:
        chosen, imported = _import(source, name, store, quiet=quiet)
        for full, image in chosen.items():
            register(tree, full, image.descriptor.digest, f"{source} as {full}")
            click.echo(f"{full} {image.descriptor.digest}")
    if imported.closure.missing and not quiet:
        absent = ", ".join(sorted({str(one.platform or one.digest) for one in imported.closure.missing}))
        report_line(f"listed in an index but missing in the archive: {absent}")


def _import(source: str, name: str | None, store: MountStore, *, quiet: bool) -> tuple[dict[str, Listed], Imported]:
    """Import the archive. A malformed archive leaves nothing behind; a truncated one can be continued next time."""
    from imgfs.archives.importing import import_images, list_images
    from imgfs.cli.archives.names import names_for
    from imgfs.layers.compression import Compressions
    from imgfs.layers.plugin import COMPRESSION
    from imgfs.plugins.alone import objects_of

    with silent():
        compressions = Compressions(objects_of(COMPRESSION))
    try:
        with _contents(source, store, compressions, quiet=quiet) as contents:
            chosen = names_for(list_images(contents, store, compressions), name, quiet=quiet)
            wanted = list({one.descriptor.digest: one for one in chosen.values()}.values())
            imported = import_images(wanted, contents, store, compressions)
    except Truncated:
        raise
    except ImgfsError:
        with suppress(Failure):  # the error of the archive is the one to report
            store.discard_all_but(set())
        raise
    store.discard_all_but(set(imported.closure.blobs))
    return chosen, imported


@contextmanager
def _contents(source: str, store: MountStore, compressions: Compressions, *, quiet: bool) -> Generator[Contents]:
    from imgfs.archives.contents import DirectoryContents, TarContents
    from imgfs.archives.stream import open_stream

    if os.path.isdir(source):
        with progress(None, is_wanted=not quiet) as draw:
            yield DirectoryContents(Path(source), store, draw)
        return
    with _opened(source) as file, progress(_size(file), is_wanted=not quiet) as draw:
        try:
            contents = TarContents(open_stream(file, compressions, draw), store)
        except OSError as error:
            raise from_os_error(error, source) from None
        yield contents


def _opened(source: str) -> BinaryIO:
    return sys.stdin.buffer if source == "-" else open(source, "rb")


def _size(file: BinaryIO) -> int | None:
    return os.fstat(file.fileno()).st_size or None
