"""The one-time cost of the kernel's view: the time to build and mount a large image's metadata image, and its size.

The build is measured from outside: the time of the first look at a local image without its metadata image, minus the
time with it. The first look without it uses the chain's path, which waits for the metadata image. Under its name a
large image is shown without waiting.
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
    """Restart the daemon before each look. The start is not included in the figures."""
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
    """Return the seconds of the first stat in the rootfs, by a fresh daemon."""
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
