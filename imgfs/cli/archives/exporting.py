"""`imgfs export`: write images as an OCI layout or a docker-archive to a file, a directory or a pipe."""

from __future__ import annotations

import os
import sys

import click

from imgfs.cli.images.lookup import find
from imgfs.cli.options import Command, complete_name, mountpoint_option, quiet_option
from imgfs.cli.tree import Tree

OCI, OCI_DIRECTORY, DOCKER = "oci", "oci-dir", "docker-archive"


@click.command(cls=Command)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete_name)
@click.option("-o", "--output", metavar="DEST", type=click.Path(), help="A file or a directory. Default: stdout (`-`).")
@click.option(
    "--as",
    "form",
    type=click.Choice([OCI, OCI_DIRECTORY, DOCKER]),
    help=f"The format. Default: {OCI_DIRECTORY} if DEST is a directory or ends with `/`, else {OCI} (a tar).",
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Export this platform of an index. Default: the mount's.")
@click.option("--all-platforms", is_flag=True, help="Export an index with all images that it lists.")
@mountpoint_option
@quiet_option
def export(
    images: tuple[str, ...],
    output: str | None,
    form: str | None,
    platform: str | None,
    *,
    all_platforms: bool,
    mountpoint: str,
    quiet: bool,
) -> None:
    """Write images to a file, a directory or a pipe.

    The format is the tar of an OCI image layout (read by skopeo, podman, ctr and docker), an OCI layout in a directory,
    or a docker-archive (read by `docker load`). Missing blobs are fetched and every byte is verified. Exporting the
    same images again produces the same bytes. A file gets its name when it is complete and durable. A directory keeps
    the images that it has already; an interrupted export into it continues when it is repeated.
    """
    output = None if output == "-" else output
    form = form or _form(output)
    _check(output, form, platform, all_platforms=all_platforms)
    from imgfs.cli.archives.archive_output import write_docker, write_oci
    from imgfs.cli.archives.selection import choose_image
    from imgfs.oci.platform import parse_platform

    wanted = parse_platform(platform) if platform else None
    tree = Tree.open(mountpoint)
    found = [find(tree, image, quiet=quiet) for image in images]
    listed = [choose_image(tree, one, wanted, all_platforms=all_platforms) for one in found]
    if form == DOCKER:
        write_docker(tree, listed, output, quiet=quiet)
    else:
        write_oci(tree, listed, output, is_directory=form == OCI_DIRECTORY, quiet=quiet)


def _form(output: str | None) -> str:
    return OCI_DIRECTORY if output and (output.endswith("/") or os.path.isdir(output)) else OCI


def _check(output: str | None, form: str, platform: str | None, *, all_platforms: bool) -> None:
    if output is None and form == OCI_DIRECTORY:
        raise click.UsageError(f"--as {OCI_DIRECTORY} needs a directory; name one with -o")
    if output is None and sys.stdout.isatty():
        raise click.UsageError("an archive is not written to a terminal; name a file with -o, or use a pipe: | tar t")
    if output is not None and form != OCI_DIRECTORY and os.path.isdir(output):
        raise click.UsageError(f"{output} is a directory; name a file, or write --as {OCI_DIRECTORY}")
    if platform and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    if form == DOCKER and all_platforms:
        raise click.UsageError(f"a {DOCKER} contains one platform; choose it with --platform")
