"""`imgfs check` and `imgfs repair`: the state directory from outside, with a daemon or without."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgfs.cli.failure import Failure, from_error
from imgfs.cli.options import Command, format_option
from imgfs.cli.table import human_size, render_json
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.check.finding import Finding

state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The state directory. Default: as `imgfs mount` chooses it.",
)
deep_option = click.option("--deep", is_flag=True, help="Read and hash every byte. Default: names, sizes, checksums.")


@click.command(cls=Command)
@state_option
@deep_option
@format_option("table")
def check(state: Path | None, deep: bool, form: str) -> None:
    """Look for damage in the state directory, and change nothing.

    Also while it is mounted. Each finding is a line: what, what follows, and the cure. The exit code is 0 where all is
    well, 6 where something was found.
    """
    found = list(_found(_chosen(state), deep))
    if form == "json":
        click.echo(render_json([_told(one) for one in found]))
    else:
        for one in found:
            click.echo(one.line())
    if found:
        raise Failure(f"check: {len(found)} findings; `imgfs repair` mends what can be mended", errno.EBADMSG)


@click.command(cls=Command)
@state_option
@deep_option
@format_option("table")
def repair(state: Path | None, deep: bool, form: str) -> None:
    """Mend what `imgfs check` finds.

    Damaged content is set aside, and what is made again from other files is removed. Never deletes the only copy of
    anything. Not while it is mounted (exit code 7). May be interrupted and repeated.
    """
    from imgfs.check.finding import NONE
    from imgfs.check.repair import mend
    from imgfs.lock import locked

    chosen = _chosen(state)
    try:
        with locked(chosen, "for repair"):
            found = list(_found(chosen, deep))
            mended = [one for one in found if mend(chosen, one)]
    except ImgfsError as error:
        raise from_error(error) from None
    if form == "json":
        click.echo(render_json([_told(one) | {"mended": one in mended} for one in found]))
    else:
        for one in found:
            click.echo(f"{'mended' if one in mended else 'left'}: {one.line()}")
    if left := [one for one in found if one.mend == NONE]:
        raise Failure(f"repair: {len(left)} findings are left for you", errno.EBADMSG)


def _chosen(state: Path | None) -> Path:
    from imgfs.config import default_state

    chosen = Path(os.path.realpath(state or default_state()))
    if not chosen.is_dir():
        raise Failure(f"{chosen}: there is no such state directory; name one with --state", errno.ENOENT)
    return chosen


def _found(state: Path, deep: bool) -> Iterator[Finding]:
    from imgfs.check.checks import check_blobs, check_database, check_ingests, check_layers, check_views

    with _progress() as moved:
        try:
            for one in (check_database, check_blobs, check_layers, check_views, check_ingests):
                yield from one(state, deep, moved)
        except OSError as error:
            raise Failure(f"{error.filename or state}: {error.strerror}", error.errno or errno.EIO) from None


def _told(finding: Finding) -> dict[str, object]:
    return {"path": finding.path, "what": finding.what, "consequence": finding.consequence, "cure": finding.cure}


@contextmanager
def _progress() -> Generator[Callable[[int], object]]:
    """How much was read, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    read = 0

    def moved(count: int) -> None:
        nonlocal read
        if read >> 26 != (read + count) >> 26:
            click.echo(f"\rread {human_size(read + count)} ", nl=False, err=True)
        read += count

    try:
        yield moved
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)
