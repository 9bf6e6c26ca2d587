"""P11: how many requests a registry receives, counted by a link without limits."""

from __future__ import annotations

import os
from collections.abc import Callable

from .bench import Bench, recorded, say
from .contestants import PULL, Contestant, Imgfs
from .images import Image
from .processes import Failed
from .results import Row, Unit
from .servers import ShapedLink

REQUESTS = "P11"
FIRST_CONTACT, COMPLETE, TAG_CHECK = "first contact", "complete image", "tag check"
IMAGES = ("base:gz", "big:gz")


def requests(bench: Bench) -> None:
    """Count the requests of imgfs's first contact, second complete pull and tag check, and of the peers' first pull."""
    with ShapedLink(bench.registry, bench.work) as link:
        for image in bench.images(IMAGES):
            say(f"{REQUESTS} {image.label}")
            _imgfs(bench, image, link)
            for kind in (kind for kind in PULL if kind is not Imgfs):
                _peer(bench, kind, image, link)


def _row(bench: Bench, image: Image, what: str, contestant: str) -> Row:
    return bench.results.row(REQUESTS, f"{image.label} {what}", contestant, Unit.REQUESTS)


def _imgfs(bench: Bench, image: Image, link: ShapedLink) -> None:
    rows = [_row(bench, image, what, Imgfs.name) for what in (FIRST_CONTACT, COMPLETE, TAG_CHECK)]
    with recorded(*rows), bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        name = mount.image(link.address, image.label)
        _count(link, rows[0], lambda: _read_and_complete(mount, image, link))
        _count(link, rows[1], lambda: _read_and_complete(mount, image, link))
        _count(link, rows[2], lambda: os.utime(name, follow_symlinks=False))


def _read_and_complete(mount: Imgfs, image: Image, link: ShapedLink) -> None:
    if mount.first_cat(link.address, image.label) != image.os_release():
        raise Failed("imgfs printed something else than the image's file holds")
    mount.pull(link.address, image.label)


def _peer(bench: Bench, kind: type[Contestant], image: Image, link: ShapedLink) -> None:
    row = _row(bench, image, FIRST_CONTACT, kind.name)
    with recorded(row), bench.entered(kind) as contestant:
        _count(link, row, lambda: contestant.pull(link.address, image.label))


def _count(link: ShapedLink, row: Row, action: Callable[[], object]) -> None:
    link.zero()
    action()
    counts = link.counts()
    row.samples.append(sum(counts.values()))
    row.note = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))


def expected_at_first_contact(layers: int) -> int:
    """Return the sum of one ping, one manifest (the images have no index), one config and one request a layer."""
    return 3 + layers
