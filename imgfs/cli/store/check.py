"""`imgfs check` and `imgfs repair`: examine and repair the state directory, with or without a daemon."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imgfs.cli.failure import Failure, from_error, from_os_error
from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.store.scan_progress import reading
from imgfs.cli.table import render_json
from imgfs.cli.tree import Tree
from imgfs.errors import ImgfsError
from imgfs.lock import holder

if TYPE_CHECKING:
    from imgfs.check.finding import Finding
    from imgfs.cli.store.repair import Mended

_SECOND_LOOK = 1.0
"""Seconds until findings are checked again if a daemon runs: changes that were in progress are complete by then."""

state_option = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The state directory. Default: the one of the mounted tree, else the default of `imgfs mount`.",
)
deep_option = click.option("--deep", is_flag=True, help="Read and hash every byte. Default: names, sizes, checksums.")


@click.command(cls=Command)
@state_option
@mountpoint_option
@deep_option
@format_option("table")
def check(state: Path | None, mountpoint: str, *, deep: bool, form: str) -> None:
    """Look for damage in the state directory, and change nothing.

    Works while the tree is mounted. Prints a line for each finding: what, the consequence, and the cure. The exit code
    is 0 without findings and 6 with findings. Files that an earlier repair set aside are notes, not findings.
    """
    from imgfs.cli.store.repair import told

    found = list(_found(_chosen(state, mountpoint), deep=deep))
    if form == "json":
        click.echo(render_json([told(one) for one in found]))
    else:
        for one in found:
            click.echo(one.line() if one.is_damage else f"note: {one.line()}")
    if damage := [one for one in found if one.is_damage]:
        raise Failure(f"check: findings: {len(damage)}; `imgfs repair` repairs what can be repaired", errno.EBADMSG)


@click.command(cls=Command)
@state_option
@mountpoint_option
@deep_option
@format_option("table")
def repair(state: Path | None, mountpoint: str, *, deep: bool, form: str) -> None:
    """Repair what `imgfs check` finds.

    Damaged content is set aside and derived files are rebuilt. The only copy of something is never deleted. While the
    tree is mounted, the daemon does the work and fetches again what a registry has. The command can be interrupted and
    repeated. The exit code is 0 if no finding is left and 6 otherwise.
    """
    from imgfs.cli.store.repair import mending, mending_mounted

    chosen = _chosen(state, mountpoint)
    held = holder(chosen)
    try:
        if held is not None and held.mountpoint is not None:
            done = list(mending_mounted(Tree.open(held.mountpoint), _found(chosen, deep=deep)))
        else:
            with reading() as progress:
                done = list(mending(chosen, deep=deep, progress=progress))
    except ImgfsError as error:
        raise from_error(error) from None
    _show(done, form)
    if left := [one for one in done if one.is_left]:
        raise Failure(f"repair: findings that need manual action: {len(left)}", errno.EBADMSG)


def _show(done: list[Mended], form: str) -> None:
    if form == "json":
        click.echo(render_json([one.told() for one in done]))
    else:
        for one in done:
            click.echo(one.line())


def _chosen(state: Path | None, mountpoint: str) -> Path:
    from imgfs.config import default_state

    chosen = Path(os.path.realpath(state or _state_of(mountpoint) or default_state()))
    if not chosen.is_dir():
        raise Failure(f"{chosen}: no such state directory; name one with --state", errno.ENOENT)
    return chosen


def _state_of(mountpoint: str) -> str | None:
    """Return the state directory of the tree mounted at `mountpoint`, or None."""
    try:
        return Tree.open(mountpoint).read_json(f"{mountpoint}/.imgfs/state.json")["state"]
    except (OSError, Failure, KeyError):
        return None


def _found(state: Path, *, deep: bool) -> Iterator[Finding]:
    """Yield findings. If a daemon runs, yield only findings that a second check confirms."""
    from imgfs.assembly.tables import TABLES
    from imgfs.check.examiner import Examiner
    from imgfs.check.repair import place_of

    is_held = holder(state) is not None
    doubtful: list[str] = []
    try:
        with reading() as progress:
            with Examiner(state, TABLES.kept, deep=deep, moved=progress.moved) as examiner:
                progress.expect(examiner.size())
                for place in examiner.places():
                    progress.at(place)
                    found = examiner.examine(place)
                    if found is not None and found.is_damage and is_held:
                        doubtful.append(place_of(found))
                    elif found is not None:
                        yield found
            if doubtful:
                time.sleep(_SECOND_LOOK)
                with Examiner(state, TABLES.kept, deep=deep, moved=progress.moved) as examiner:
                    for place in doubtful:
                        if (found := examiner.examine(place)) is not None:
                            yield found
    except OSError as error:
        raise from_os_error(error, str(error.filename or state)) from None
