"""P1 and P2: the first file from nothing, and pulling the whole image."""

from __future__ import annotations

from .bench import Bench, given_up, recorded, say, timed
from .contestants import FIRST_CAT, PULL, Contestant, Imgfs
from .images import Image
from .processes import Failed
from .results import Row, Unit
from .servers import FAR_MBPS, FAR_RTT_MS, Address, ShapedLink

FIRST, PULLED, DISK = "P1", "P2", "P2 disk"
STARTED = "daemon start, empty state"
FIRST_IMAGES = ("tiny:gz", "base:gz", "base:zst", "big:gz")
FULL_IMAGES = ("python:gz",)
UNCOMPRESSED = "uncompressed"


def _images(bench: Bench) -> list[Image]:
    labels = (*FIRST_IMAGES, *(FULL_IMAGES if bench.full else ()))
    return bench.images(label for label in labels if bench.wants(label))


def first_cat(bench: Bench) -> None:
    """Read a file's content from nothing, near and far.

    The start of a daemon is excluded; imgfs's start has its own row.
    """
    images = _images(bench)
    with ShapedLink(bench.registry, bench.work, FAR_RTT_MS, FAR_MBPS) as far:
        for image in images:
            _first_cats(bench, image, bench.registry.near, "near")
            _first_cats(bench, image, far.address, "far")


def _first_cats(bench: Bench, image: Image, address: Address, where: str) -> None:
    case, content = f"{image.label} {where}", image.os_release()
    say(f"{FIRST} {case}")
    for kind in bench.rounds(FIRST_CAT):
        row = bench.results.row(FIRST, case, kind.name, Unit.SECONDS)
        if given_up(row):
            continue
        with recorded(row), bench.entered(kind) as contestant:
            seconds, printed = timed(lambda: contestant.first_cat(address, image.label))
            _check(kind, printed, content)
            row.samples.append(seconds)
            _note_start(bench, contestant)


def _check(kind: type[Contestant], printed: str, content: str) -> None:
    if printed != content:
        raise Failed(f"{kind.name} printed {printed[:200]!r}, the image's file holds {content[:200]!r}")


def _note_start(bench: Bench, contestant: Contestant) -> None:
    if isinstance(contestant, Imgfs):
        bench.results.row(FIRST, STARTED, Imgfs.name, Unit.SECONDS).samples.append(contestant.start_seconds)


def pull(bench: Bench) -> None:
    """Pull the whole image, near, and measure its size on disk."""
    for image in _images(bench):
        say(f"{PULLED} {image.label}")
        bench.results.row(DISK, image.label, UNCOMPRESSED, Unit.MEGABYTES).samples.append(
            image.uncompressed_bytes / 1e6
        )
        for kind in bench.rounds(PULL):
            row = bench.results.row(PULLED, image.label, kind.name, Unit.SECONDS)
            disk = bench.results.row(DISK, image.label, kind.name, Unit.MEGABYTES)
            if not given_up(row):
                _pull(bench, kind, image, row, disk)


def _pull(bench: Bench, kind: type[Contestant], image: Image, row: Row, disk: Row) -> None:
    with recorded(row, disk), bench.entered(kind) as contestant:
        seconds, own = timed(lambda: contestant.pull(bench.registry.near, image.label))
        used = contestant.disk()
        row.samples.append(seconds if own is None else own)
        disk.samples.append(used / 1e6)
