"""`imgfs referrers`: list the SBOMs, signatures and other manifests that refer to an image."""

from __future__ import annotations

import json
import os
from typing import TypedDict

import click

from imgfs.cli.images.lookup import ChosenImage, find
from imgfs.cli.options import Command, format_option, image_argument, mountpoint_option, quiet_option
from imgfs.cli.table import human_size, render_json, render_table, short_digest
from imgfs.cli.tree import Tree


class ReferrerRow(TypedDict):
    """One referrer in the JSON of `imgfs referrers`. `path` is the file with its manifest."""

    digest: str
    artifact_type: str
    media_type: str
    size: int
    annotations: dict[str, str]
    path: str


@click.command(cls=Command)
@image_argument
@mountpoint_option
@click.option("--type", "artifact_type", metavar="TYPE", help="List only this artifact type (a media type).")
@click.option("--local", is_flag=True, help="Send no request; list the known referrers.")
@format_option("table")
@quiet_option
def referrers(image: str, mountpoint: str, artifact_type: str | None, *, local: bool, form: str, quiet: bool) -> None:
    """List the referrers of IMAGE: SBOMs, signatures, attestations.

    The command asks the image's registries for the list. It does not fetch the referrers; reading a listed PATH does,
    and verifies then that the document refers to IMAGE.
    """
    tree = Tree.open(mountpoint)
    found = find(tree, image, quiet=quiet)
    if not local:
        _refresh(tree, found, artifact_type)
    rows = [one for one in _known(tree, found) if artifact_type in (None, one["artifact_type"])]
    click.echo(render_json(rows) if form == "json" else _table(rows))


def _refresh(tree: Tree, found: ChosenImage, artifact_type: str | None) -> None:
    try:
        with open(tree.referrers_file(found.digest, artifact_type), "rb"):
            pass
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject, tree.referrers(found.digest)) from None


def _known(tree: Tree, found: ChosenImage) -> list[ReferrerRow]:
    directory = tree.referrers(found.digest)
    return [_row(f"{directory}/{name}") for name in sorted(os.listdir(directory))]


def _row(path: str) -> ReferrerRow:
    return {
        "digest": os.path.basename(path).removesuffix(".json"),
        "artifact_type": _fact(path, "artifact_type"),
        "media_type": _fact(path, "media_type"),
        "size": os.stat(path).st_size,
        "annotations": json.loads(_fact(path, "annotations") or "{}"),
        "path": path,
    }


def _fact(path: str, name: str) -> str:
    try:
        return os.getxattr(path, f"user.imgfs.{name}").decode(errors="replace")
    except OSError:
        return ""


def _table(rows: list[ReferrerRow]) -> str:
    cells = [
        (short_digest(one["digest"]), one["artifact_type"] or "-", human_size(one["size"]), one["path"]) for one in rows
    ]
    return render_table(("DIGEST", "TYPE", "SIZE", "PATH"), cells, right={2})
