"""`imgfs snapshot`: prepare, commit, list and remove snapshots. Shortcuts for mkdir, ln, mv, rmdir and cat.

The commands explain the errno of the mount in a message, and undo the first step if the second one fails.
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
    """Prepare, commit, list, export and remove snapshots.

    `prepare` makes a writable snapshot on top of an image, `commit` makes it read-only under a name, and `export`
    writes its changes as a layer. An ID is what `ls` shows: a name, `active/KEY`, or an image's chain ID or its prefix.
    """


snapshot.add_command(ls)


@snapshot.command(cls=Command)
@click.argument("key", metavar="KEY")
@click.argument("parent", required=False, metavar="[PARENT]", shell_complete=complete_base)
@mountpoint_option
@quiet_option
def prepare(key: str, parent: str | None, mountpoint: str, *, quiet: bool) -> None:
    """Make a writable snapshot and print the path of its files.

    The snapshot starts with the files of PARENT, which is a snapshot's ID or an image; a snapshot wins over an image of
    the same name. Without PARENT it starts empty. An image that is not local is fetched. No file is copied. If the
    command fails, KEY stays free.
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
    """Give a snapshot another, read-only name and print the path of its files.

    TARGET is a snapshot's ID or an image. While the view exists, its target cannot be removed.
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
    """Commit the writable snapshot KEY as NAME.

    The snapshot NAME is read-only and survives a power cut, other snapshots can be prepared on top of it, and KEY is
    free again. The time does not depend on the size of the image. The command fails with exit code 7 while a process
    uses the files.
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
    """Remove snapshots and the changes in them.

    Removing a view removes only its name. A snapshot with children or views, or with files in use, is busy (exit code
    7). If a snapshot cannot be removed, the command reports it and continues with the others; the exit code is that of
    the first failure.
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
    """Print the path of the files of a snapshot or of an image.

    ID is a snapshot's ID or an image; a snapshot wins over an image of the same name. An image that is not local is
    fetched. The path has no colon below the mountpoint. The first access to the path mounts the files; this command
    does not.
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
    """Set the parent of a new snapshot. On any exception, remove the snapshot again."""
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
    """Print the path as bytes, because a path need not be valid text."""
    click.echo(os.fsencode(tree.snapshot_rootfs(id)))
