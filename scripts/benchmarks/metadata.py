"""What the kernel's view costs once: building the metadata image of a large image, its size, and mounting it.

The building is seen from outside: the first look at a local image without its metadata image, less one with it. The
former goes by the chain's path, which waits for the metadata image; by the image's name a large one is shown without.
"""

from __future__ import annotations

import os
from pathlib import Path

from .bench import Bench, recorded, say, timed
from .contestants import Imgfs
from .disks import filesystem_type
from .processes import Failed
from .reading import Reader
from .results import Unit

METADATA = "metadata"
FIRST_LOOK, MOUNTED = "first look, to be built", "first look, built before"
BUILT, SIZE = "building, an entry", "size, an entry"
_LABEL = "double:gz"


def measure(bench: Bench) -> None:
    """Restart the daemon before each look; its start is not in the figures."""
    say(f"{METADATA} {_LABEL}")
    image = bench.images([_LABEL])[0]
    looks = {case: bench.results.row(METADATA, case, Imgfs.name, Unit.SECONDS) for case in (FIRST_LOOK, MOUNTED)}
    built = bench.results.row(METADATA, BUILT, Imgfs.name, Unit.MICROSECONDS)
    size = bench.results.row(METADATA, SIZE, Imgfs.name, Unit.BYTES)
    with recorded(*looks.values(), built, size), bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        mount.pull(bench.registry.near, image.label)
        rootfs = mount.image(bench.registry.near, image.label) / "rootfs"
        chain = rootfs.resolve()
        entries = Reader(bench.work).measure(chain, "walk").amount + 1
        for _ in range(bench.repeats):
            first = _look(mount, chain, forget=True)
            size.samples.append(sum(file.stat().st_size for file in _files(mount)) / entries)
            second = _look(mount, rootfs, forget=False)
            looks[FIRST_LOOK].samples.append(first)
            looks[MOUNTED].samples.append(second)
            built.samples.append((first - second) / entries * 1e6)
        looks[MOUNTED].note = f"{entries:,} entries, on {filesystem_type(chain)}"


def _look(mount: Imgfs, rootfs: Path, *, forget: bool) -> float:
    """Seconds of the first stat of something in the rootfs, by a fresh daemon."""
    mount.unmount()
    if forget:
        for file in _files(mount):
            file.unlink()
    mount.mount()
    seconds, _ = timed(lambda: os.stat(rootfs / "srv"))
    if not _files(mount):
        raise Failed("imgfs has made no metadata image")
    return seconds


def _files(mount: Imgfs) -> list[Path]:
    return list((mount.state / "views").glob("*.erofs"))
