"""`imgfs label` and `imgfs snapshot label`: show, set and remove labels of blobs and snapshots.

Labels are read as the xattrs `user.label.<key>`. They are written through an xattr of the parent directory, because the
kernel does not let an ordinary user set an xattr of a read-only file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import quote_from_bytes

import click

from imgfs.cli.failure import from_os_error, printable
from imgfs.cli.images.lookup import find_registered
from imgfs.cli.options import Command, complete_name, format_option, mountpoint_option, quiet_option
from imgfs.cli.snapshots.ids import complete_snapshot, existing
from imgfs.cli.table import render_json
from imgfs.cli.tree import Tree
from imgfs.oci.digest import is_digest

_PREFIX = "user.label."
_PLAIN = "/:@+,~()[]"


@click.command(cls=Command)
@click.argument("image", metavar="IMAGE", shell_complete=complete_name)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE | KEY-]...")
@mountpoint_option
@format_option("table")
@quiet_option
def label(image: str, changes: tuple[str, ...], mountpoint: str, form: str, *, quiet: bool) -> None:
    """Show, set and remove labels of content.

    IMAGE is a registered name (the label is set on its manifest) or the digest of a stored blob. KEY=VALUE sets a label
    and KEY- removes it; without changes the labels are shown. Labels have containerd's meaning: `containerd.io/gc.root`
    protects a blob from `imgfs gc`, and `containerd.io/gc.ref.content.NAME=DIGEST` protects the blob DIGEST.
    """
    tree = Tree.open(mountpoint)
    digest = image if is_digest(image) else find_registered(tree, image, quiet=quiet).digest
    _label(tree, tree.content, digest, changes, form)


@click.command("label", cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_snapshot)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE | KEY-]...")
@mountpoint_option
@format_option("table")
def label_snapshot(id: str, changes: tuple[str, ...], mountpoint: str, form: str) -> None:
    """Show, set and remove labels of a snapshot.

    KEY=VALUE sets a label and KEY- removes it; without changes the labels are shown. A commit keeps the labels.
    """
    tree = Tree.open(mountpoint)
    _label(tree, tree.snapshots, existing(tree, id), changes, form)


def _label(tree: Tree, directory: str, id: str, changes: Sequence[str], form: str) -> None:
    """Show or change labels. All changes are parsed before the first one is made."""
    orders = [_order(id, change) for change in changes]
    path = os.path.join(directory, id)
    try:
        for order in orders:
            os.setxattr(directory, "user.imgfs.label", order)
        if not orders:
            click.echo(_shown(_labels(path), form), nl=False)
    except OSError as error:
        raise from_os_error(error, f"label of {id}", tree.reason(path) if orders else None, tree.log) from None


def _order(id: str, change: str) -> bytes:
    key, equals, value = change.partition("=")
    if not equals and not key.endswith("-"):
        raise click.UsageError(f"{printable(change)}: expected KEY=VALUE to set a label or KEY- to remove it")
    chosen = key if equals else key[:-1]
    return f"{_quoted(id)} {_quoted(chosen)}".encode() + (b"=" + os.fsencode(value) if equals else b"")


def _quoted(text: str) -> str:
    return quote_from_bytes(os.fsencode(text), _PLAIN)


def _labels(path: str) -> dict[str, str]:
    names = sorted(name for name in os.listxattr(path) if name.startswith(_PREFIX))
    return {name.removeprefix(_PREFIX): os.getxattr(path, name).decode(errors="backslashreplace") for name in names}


def _shown(labels: dict[str, str], form: str) -> str:
    if form == "json":
        return f"{render_json(labels)}\n"
    return "".join(f"{printable(key)}={printable(value)}\n" for key, value in labels.items())
