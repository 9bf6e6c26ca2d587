"""Write images of the mount into an archive: collect the blobs, order them, draw progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from imgfs.archives import layout
from imgfs.archives.closure import Closure
from imgfs.archives.exporting import DockerExport, docker_tar, layout_tar
from imgfs.archives.layout import Listed
from imgfs.archives.layout_directory import write_layout
from imgfs.cli.archives.names import docker_tag
from imgfs.cli.archives.selection import MountBlobs
from imgfs.cli.failure import report_line
from imgfs.cli.images.lookup import ChosenImage
from imgfs.cli.images.waiting import bring
from imgfs.cli.output import progress, unwritten, write_file, write_out
from imgfs.cli.tree import Tree
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import parse_config


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
