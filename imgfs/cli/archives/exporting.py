"""`imgfs export`: write images as an OCI layout or a docker-archive to a file, a directory or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from imgfs.archives import layout
from imgfs.archives.closure import Closure
from imgfs.archives.exporting import DockerExport, docker_tar, layout_tar
from imgfs.archives.layout import Listed
from imgfs.archives.layout_directory import write_layout
from imgfs.cli.archives.names import docker_tag
from imgfs.cli.archives.selection import MountBlobs
from imgfs.cli.failure import report_line
from imgfs.cli.images.lookup import ChosenImage, find
from imgfs.cli.images.waiting import bring
from imgfs.cli.options import Command, complete_name, mountpoint_option, quiet_option
from imgfs.cli.output import progress, unwritten, write_file, write_out
from imgfs.cli.tree import Tree
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import parse_config

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
    from imgfs.cli.archives.exporting import write_docker, write_oci
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


def write_oci(tree: Tree, listed: list[Listed], output: str | None, *, is_directory: bool, quiet: bool) -> None:
    """Write an OCI layout: a tar to a file or stdout, or a directory. Missing blobs are fetched."""
    closure, blobs = Closure(), MountBlobs(tree)
    for image in listed:
        closure.add(image.descriptor, blobs)
    if closure.missing and not quiet:
        absent = ", ".join(sorted({str(one.platform or one.digest) for one in closure.missing}))
        report_line(f"not exported, because it is not local and no registry is known to have it: {absent}")
    sizes = {digest: descriptor.size for digest, descriptor in closure.blobs.items()}
    if not is_directory:
        pieces = layout_tar(layout.write_index(_merged(listed)), sizes, blobs.pieces)
        _write(pieces, output, sum(sizes.values()), quiet=quiet)
        return
    assert output is not None
    with progress(sum(sizes.values()), is_wanted=not quiet) as draw:
        try:
            write_layout(Path(output), _merged(listed), sizes, blobs.pieces, _summed(draw))
        except OSError as error:
            raise unwritten(error, output) from None


def write_docker(tree: Tree, listed: list[Listed], output: str | None, *, quiet: bool) -> None:
    """Write a docker-archive to a file or stdout. The images are pulled first, because it contains the layers' tars."""
    blobs = MountBlobs(tree)
    images: list[DockerExport] = []
    sizes: dict[Digest, int] = {}
    for image in _merged(listed):
        digest = image.descriptor.digest
        bring(
            tree,
            ChosenImage(digest, next(iter(image.names), None)),
            lambda digest=digest: tree.pull(digest),
            quiet=quiet,
        )
        closure = Closure()
        closure.add(image.descriptor, blobs)
        config = blobs.whole(closure.manifests[digest].config)
        diff_ids = parse_config(config).diff_ids
        tags = dict.fromkeys(tag for name in image.names if (tag := docker_tag(name)))
        images.append(DockerExport(config, diff_ids, tuple(tags)))
        sizes |= {diff_id: os.stat(tree.layer(diff_id)).st_size for diff_id in diff_ids}
    _write(docker_tar(images, sizes, blobs.layer_pieces), output, sum(sizes.values()), quiet=quiet)


def _merged(listed: list[Listed]) -> list[Listed]:
    """Merge duplicates: each image once, with all its names in the given order."""
    names: dict[Digest, dict[str, None]] = {}
    for one in listed:
        names.setdefault(one.descriptor.digest, {}).update(dict.fromkeys(one.names))
    first = {one.descriptor.digest: one.descriptor for one in reversed(listed)}
    return [Listed(first[digest], tuple(names[digest])) for digest in names]


def _write(pieces: Iterator[bytes], output: str | None, total: int, *, quiet: bool) -> None:
    # No progress without a file: the reader of the pipe may write to the same terminal.
    with progress(total, is_wanted=output is not None and not quiet) as draw:
        if output is None:
            write_out(pieces, draw)
        else:
            write_file(pieces, Path(output), draw)


def _summed(draw: Callable[[int], None]) -> Callable[[int], None]:
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        draw(done)

    return moved
