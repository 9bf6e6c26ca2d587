"""`imgfs snapshot`: writable directories on top of images, kept as snapshots. Sugar over mkdir, ln, mv, rmdir and cat.

Says in sentences what the mount says in errno, and takes back half of what cannot be done whole.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import click

from imgfs.cli.failure import Failure, raise_first
from imgfs.cli.options import Command, Group, mountpoint_option, quiet_option
from imgfs.cli.snapshots.export import export
from imgfs.cli.snapshots.ids import (
    base,
    complete_base,
    complete_key,
    complete_own,
    complete_path,
    existing,
    existing_or_image,
    key_of,
)
from imgfs.cli.snapshots.ls import ls
from imgfs.cli.store.label import label_snapshot
from imgfs.cli.tree import Tree
from imgfs.snapshots.ids import active_id, check_name


@click.group(cls=Group)
def snapshot() -> None:
    """Make, keep, list and export snapshots.

    `prepare` makes a writable one on top of an image, `commit` keeps it for good under a name, `export` writes its
    changes as a layer. An id is what `ls` shows: a name, `active/KEY`, or a chain ID of an image, also its beginning.
    """


snapshot.add_command(ls)


@snapshot.command(cls=Command)
@click.argument("key", metavar="KEY")
@click.argument("parent", required=False, metavar="[PARENT]", shell_complete=complete_base)
@mountpoint_option
@quiet_option
def prepare(key: str, parent: str | None, mountpoint: str, *, quiet: bool) -> None:
    """Make a writable snapshot and print where its files are.

    PARENT is what it starts as: a snapshot's id, or an image as `imgfs pull` takes it; a snapshot wins over an image
    of that name. Without PARENT it starts empty. An image that is not here comes here. Nothing is copied. If it fails,
    KEY is free as before.
    """
    tree, checked = Tree.open(mountpoint), key_of(key)
    below = base(tree, parent, quiet=quiet) if parent is not None else None
    id = active_id(checked)
    _make(tree, id)
    if below is not None:
        _put_upon(tree, id, below)
    _tell_rootfs(tree, id)


@snapshot.command(cls=Command)
@click.argument("name", metavar="NAME")
@click.argument("target", metavar="TARGET", shell_complete=complete_base)
@mountpoint_option
@quiet_option
def view(name: str, target: str, mountpoint: str, *, quiet: bool) -> None:
    """Give a snapshot one more name and print where its files are.

    TARGET is a snapshot's id, or an image as `imgfs pull` takes it. As long as the view is there, nobody can remove
    what it stands for. It cannot be written to.
    """
    tree = Tree.open(mountpoint)
    check_name(name)
    _check_free(tree, name)
    target = base(tree, target, quiet=quiet)
    try:
        os.symlink(target, tree.snapshot(name))
    except FileExistsError:
        raise _taken(name) from None
    except OSError as error:
        raise tree.snapshot_failure(error, target) from None
    _tell_rootfs(tree, name)


@snapshot.command(cls=Command)
@click.argument("key", metavar="KEY", shell_complete=complete_key)
@click.argument("name", metavar="NAME")
@mountpoint_option
def commit(key: str, name: str, mountpoint: str) -> None:
    """Keep the writable snapshot KEY for good, as NAME.

    From then on nobody can change it, others can be prepared on top of it, and KEY is free again. It survives a power
    cut. Takes no longer for a big image than for a small one. Busy (exit code 7) while somebody uses its files.
    """
    tree = Tree.open(mountpoint)
    id = existing(tree, active_id(key_of(key)))
    check_name(name)
    _check_free(tree, name)
    try:
        os.rename(tree.snapshot(id), tree.snapshot(name))
    except (FileExistsError, NotADirectoryError):
        raise _taken(name) from None
    except OSError as error:
        raise tree.snapshot_failure(error, id) from None


@snapshot.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete_own)
@mountpoint_option
def rm(ids: tuple[str, ...], mountpoint: str) -> None:
    """Remove snapshots with what was written to them.

    Of a view only the name goes. Busy (exit code 7) are those that others lie on or are views of, and those that
    somebody uses. One that cannot be removed is reported and the others go all the same; the exit code is that of the
    first.
    """
    tree = Tree.open(mountpoint)
    failures: list[Failure] = []
    for id in ids:
        try:
            _remove(tree, existing(tree, id))
        except Failure as failure:
            failures.append(failure)
    raise_first(failures)


@snapshot.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_path)
@mountpoint_option
@quiet_option
def path(id: str, mountpoint: str, *, quiet: bool) -> None:
    """Print where the files of a snapshot or of an image are.

    ID is a snapshot's id, or an image as `imgfs pull` takes it; a snapshot wins over an image of that name. An image
    that is not here comes here. The path has no colon below the mountpoint. A snapshot is mounted as soon as a program
    walks there, and not by this command.
    """
    tree = Tree.open(mountpoint)
    _tell_rootfs(tree, existing_or_image(tree, id, quiet=quiet))


snapshot.add_command(export)
snapshot.add_command(label_snapshot)


def _make(tree: Tree, id: str) -> None:
    try:
        os.mkdir(tree.snapshot(id))
    except FileExistsError:
        raise _taken(id) from None
    except OSError as error:
        raise tree.snapshot_failure(error, id) from None


def _put_upon(tree: Tree, id: str, parent: str) -> None:
    """Set the parent of a snapshot that was just made, or unmake it, whatever comes."""
    try:
        os.symlink(f"../../{parent}", f"{tree.snapshot(id)}/parent")
    except OSError as error:
        failure = tree.snapshot_failure(error, id)
        _unmake(tree, id)
        raise failure from None
    except BaseException:
        _unmake(tree, id)
        raise


def _unmake(tree: Tree, id: str) -> None:
    with suppress(OSError):
        os.rmdir(tree.snapshot(id))


def _remove(tree: Tree, id: str) -> None:
    place = tree.snapshot(id)
    try:
        if os.path.islink(place):
            os.unlink(place)
        else:
            os.rmdir(place)
    except OSError as error:
        raise tree.snapshot_failure(error, id) from None


def _check_free(tree: Tree, name: str) -> None:
    if os.path.lexists(tree.snapshot(name)):
        raise _taken(name)


def _taken(id: str) -> Failure:
    return Failure(f"snapshot {id}: exists already; choose another name, or `imgfs snapshot rm {id}`", errno.EEXIST)


def _tell_rootfs(tree: Tree, id: str) -> None:
    """In bytes: what is no text is a path all the same."""
    click.echo(os.fsencode(tree.snapshot_rootfs(id)))
