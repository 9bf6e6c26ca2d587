"""`imgfs push`: send to a registry the parts of an image that it does not have, with progress."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypedDict, cast

import click

from imgfs.cli.failure import Failure, report_line
from imgfs.cli.images.lookup import ChosenImage, find
from imgfs.cli.images.waiting import beside
from imgfs.cli.options import (
    Command,
    complete_name,
    format_option,
    image_argument,
    mountpoint_option,
    quiet_option,
)
from imgfs.cli.table import human_size, render_json, render_table, short_digest
from imgfs.cli.tree import Tree
from imgfs.oci.reference import Reference, expand_familiar, is_host


class PushedPart(TypedDict):
    """One blob or document of a push report (transfer/push/report.py explains the keys)."""

    kind: str
    digest: str
    size: int
    media_type: str
    outcome: str
    source: str | None


class PushDocument(TypedDict):
    """The JSON of `imgfs push`."""

    name: str
    mirror: str | None
    digest: str
    media_type: str
    sent: int
    mounted: int
    present: int
    parts: list[PushedPart]


@click.command(cls=Command)
@image_argument
@click.argument("name", required=False, metavar="[NAME]", shell_complete=complete_name)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Push this platform of an index. Default: the mount's.")
@click.option("--all-platforms", is_flag=True, help="Push an index with all images that it lists.")
@click.option("--referrers", is_flag=True, help="Also push the known referrers of the image: SBOMs, signatures.")
@mountpoint_option
@format_option("table")
@quiet_option
def push(
    image: str,
    name: str | None,
    platform: str | None,
    *,
    all_platforms: bool,
    referrers: bool,
    mountpoint: str,
    form: str,
    quiet: bool,
) -> None:
    """Push IMAGE to a registry.

    NAME defaults to the own name of IMAGE. Only blobs that the registry does not have are sent; blobs of its other
    repositories are mounted. Blobs that are not local are fetched first. The command prints what happened to each part.
    It uses the daemon's logins, as a pull does. A push that was interrupted continues if it is repeated within an hour.
    """
    if platform and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    tree = Tree.open(mountpoint)
    found = find(tree, image, quiet=quiet)
    target = _target(found, name, quiet=quiet)
    digest = _chosen(tree, found, platform) if platform else found.digest
    push_file = tree.push_file(digest, str(target), all_platforms=all_platforms, referrers=referrers)
    report = _push(tree, push_file, str(target), quiet=quiet)
    if report["mirror"] and not quiet:
        report_line(f"pushes to {target.host} go to {report['mirror']}, as its hosts.toml says")
    click.echo(render_json(report) if form == "json" else _table(report))
    if not quiet and any(part["outcome"] == "foreign" for part in report["parts"]):
        report_line("foreign layers are not pushed, because registries do not distribute them")


def _target(found: ChosenImage, name: str | None, *, quiet: bool) -> Reference:
    """Return the reference to push to. A name with a host is used as it is; a familiar name is completed."""
    text = (found.name or "") if name is None else name
    if name == "":
        raise click.UsageError("NAME is empty; give the target, or leave NAME out to push under the image's own name")
    if not text or (not is_host(text.partition("/")[0]) and name is None):
        raise click.UsageError(f"{found.subject} has no name at a registry; give the target as NAME")
    target = expand_familiar(text)
    if str(target) != text and not quiet:
        report_line(f"{text} stands for {target}")
    return target


def _chosen(tree: Tree, found: ChosenImage, platform: str) -> str:
    """Return the digest of an index's image for a platform, written as for `imgfs export`."""
    from imgfs.cli.archives.selection import choose_image
    from imgfs.oci.platform import parse_platform

    return choose_image(tree, found, parse_platform(platform), all_platforms=False).descriptor.digest


def _push(tree: Tree, push_file: str, name: str, *, quiet: bool) -> PushDocument:
    try:
        with _progress(push_file, quiet=quiet) as look:
            data = beside(lambda: _open(push_file), look)
    except OSError as error:
        if error.errno == errno.EACCES and not os.access(os.path.dirname(push_file), os.X_OK):
            raise Failure(f"{name}: only the user who mounted the tree can push from it", errno.EACCES) from None
        raise tree.blob_failure(error, push_file, name) from None
    return cast("PushDocument", json.loads(data))


def _open(push_file: str) -> bytes:
    with open(push_file, "rb") as file:
        return file.read()


@contextmanager
def _progress(push_file: str, *, quiet: bool) -> Generator[Callable[[], None]]:
    """Yield a function that draws the progress of the push on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from imgfs.cli.progress import push_progress

    with push_progress() as draw:
        total = 0

        def look() -> None:
            nonlocal total
            with suppress(OSError, ValueError, KeyError):
                told = json.loads(os.getxattr(push_file, "user.imgfs.progress"))
                total = told["total"]
                draw(told["done"], total, told["running"])

        yield look
        draw(total, total, 0)


def _table(report: PushDocument) -> str:
    rows = [
        (part["outcome"], part["kind"], short_digest(part["digest"]), human_size(part["size"]), part["source"] or "")
        for part in report["parts"]
    ]
    table = render_table(("", "KIND", "DIGEST", "SIZE", "FROM"), rows, {3})
    sent, mounted, present = (human_size(report[word]) for word in ("sent", "mounted", "present"))
    return f"{table}\n{report['name']} is {report['digest']}: {sent} sent, {mounted} mounted, {present} already present"
