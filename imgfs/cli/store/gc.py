"""`imgfs gc`: remove content that nothing refers to."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import click

from imgfs.cli.failure import Failure, from_os_error
from imgfs.cli.options import Command, format_option, mountpoint_option
from imgfs.cli.table import human_size, render_json, render_table
from imgfs.cli.tree import Tree

Report = dict[str, Any]
"""The report in `.imgfs/gc/` (imgfs/gc/)."""


@click.command(cls=Command)
@mountpoint_option
@format_option("table")
@click.option("-n", "--dry-run", is_flag=True, help="Only report what would be removed.")
@click.option("--all", "everything", is_flag=True, help="Also remove content that cannot be fetched again.")
def gc(mountpoint: str, form: str, *, dry_run: bool, everything: bool) -> None:
    """Remove content that no name or snapshot refers to.

    Leases and containerd's gc labels protect content too. Content in use stays, and so does content that no registry is
    known to have, unless --all is given. If there is no name and no snapshot, imgfs refuses to collect, because a lost
    database looks the same; --all overrides this.
    """
    report = _report(Tree.open(mountpoint), dry_run=dry_run, everything=everything)
    if form == "json":
        click.echo(render_json(report))
    else:
        click.echo(_table(report))
    if report["refused"]:
        raise Failure(f"gc: {report['refused']}", errno.EPERM)


def _report(tree: Tree, *, dry_run: bool, everything: bool) -> Report:
    directory = os.path.join(tree.path, ".imgfs")
    name = "last" if not dry_run else "dry-run-all" if everything else "dry-run"
    try:
        if not dry_run:
            os.setxattr(directory, "user.imgfs.gc", b"all" if everything else b"collect")
        with open(os.path.join(directory, "gc", name), "rb") as file:
            return json.load(file)
    except OSError as error:
        raise from_os_error(error, "gc", None, tree.log) from None


def _table(report: Report) -> str:
    done = "would be removed" if report["dry_run"] else "removed"
    rows = [
        (word, item["kind"], item["id"], human_size(item["bytes"]), item["why"])
        for word, key in ((done, "removed"), ("kept", "kept"), ("failed", "failed"))
        for item in report[key]
    ]
    total = f"{done}: {len(report['removed'])} objects, {human_size(report['bytes'])}"
    return f"{render_table(('', 'KIND', 'ID', 'SIZE', 'WHY'), rows, {3})}\n{total}" if rows else total
