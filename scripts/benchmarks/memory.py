"""P10: how long the daemon takes to start, and how much memory it uses."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from .bench import Bench, recorded, say
from .contestants import Imgfs
from .disks import filesystem_type
from .images import LOADED_AT_ONCE, RECIPE_OF
from .processes import Failed
from .reading import Reader
from .results import Unit

DAEMON = "P10"
START, VIEW, LOADING = "start with 1,000 names", "RSS, 104,000 entries in view", "highest RSS, 16 images loading"
START_EMPTY = "start with no name"
NAMES = 1000


def start(bench: Bench) -> None:
    """Restart the daemon with an empty state and with 1,000 known names."""
    say(f"{DAEMON} {START}")
    empty = bench.results.row(DAEMON, START_EMPTY, Imgfs.name, Unit.SECONDS)
    named = bench.results.row(DAEMON, START, Imgfs.name, Unit.SECONDS)
    with recorded(named), bench.entered(Imgfs) as mount:
        assert isinstance(mount, Imgfs)
        empty.samples.extend(_restart(mount) for _ in range(bench.repeats))
        for number in range(NAMES):
            digest = hashlib.sha256(b"name %d" % number).hexdigest()
            (mount.mountpoint / f"images/local-{number}").symlink_to(f"sha256:{digest}")
        for _ in range(bench.repeats):
            named.samples.append(_restart(mount))
        known = len(list((mount.mountpoint / "images").glob("local-*")))
        if known != NAMES:
            raise Failed(f"{known} of {NAMES} names are listed after a restart")


def _restart(mount: Imgfs) -> float:
    mount.unmount()
    return mount.mount()


def view(bench: Bench) -> None:
    """Measure the memory after every entry of a large image was listed and looked up."""
    say(f"{DAEMON} {VIEW}")
    row = bench.results.row(DAEMON, VIEW, Imgfs.name, Unit.MEGABYTES)
    image, reader = bench.images(["double:gz"])[0], Reader(bench.work)
    for _ in range(bench.repeats):
        with recorded(row), bench.entered(Imgfs) as mount:
            assert isinstance(mount, Imgfs)
            mount.pull(bench.registry.near, image.label)
            tree = mount.image(bench.registry.near, image.label) / "rootfs/srv"
            walked = reader.measure(tree.resolve(), "walk")
            row.samples.append(mount.memory_bytes() / 1e6)
            row.note = f"after a walk of {walked.amount:,} entries; on {filesystem_type(tree.resolve())}"


def loading(bench: Bench) -> None:
    """Measure the peak memory of a daemon that pulls 16 images of 26 MB at once, each by its own `imgfs pull`."""
    say(f"{DAEMON} {LOADING}")
    row = bench.results.row(DAEMON, LOADING, Imgfs.name, Unit.MEGABYTES)
    labels = [f"{name}:gz" for name in RECIPE_OF if name.startswith("load")]
    images = bench.images(labels)
    assert len(images) == LOADED_AT_ONCE
    for _ in range(bench.repeats):
        with recorded(row), bench.entered(Imgfs) as mount, ThreadPoolExecutor(len(images)) as readers_at_once:
            assert isinstance(mount, Imgfs)
            list(readers_at_once.map(lambda image: mount.pull(bench.registry.near, image.label), images))
            row.samples.append(mount.memory_bytes("VmHWM") / 1e6)
