"""The targets of imgfs, and whether it meets them.

Owns the bounds. The figures come from `results`, and `report` prints the verdicts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from . import contacts, fetch, ingests, kernel_views, memory, metadata, runs, scale, scenes, starts, views, writable
from .contestants import PEERS, Imgfs, ShellFloor, SkopeoUmoci, ThreadPipeline
from .images import RECIPE_OF
from .reading import WARM
from .results import Results

TIMES_FASTER = 4.0
LEVEL = 1.1
"""A ratio that counts as "level": runs of one tool differ by this much."""
ABOVE_FAR_FLOOR = 1.25
ABOVE_PIPELINE = 1.3
DISK_RATIO = 1.05
NEARLY = 1.05
"""A ratio that counts as "within 5 %"."""
COLD_SEQUENTIAL = 0.9
COLD_WALK = 1.3
WALK_PER_SECOND = 100_000
FILES_RATIO = 3.0
START_SECONDS = 0.5
VIEW_MEGABYTES = 150
LOADING_MEGABYTES = 250
SCALED = 1.2
MOUNT_SECONDS = 0.5
BUILD_MICROSECONDS = 25
ENTRY_BYTES = 150
INGEST_MEGABYTES, WARM_MEGABYTES = 500, 2000
"""Bytes a second; the lower of this and OF_THE_DISK is the target."""
OF_THE_DISK = 0.8
COMMIT_RATIO = 2.0
FLAT = 1.25
LISTING_SECONDS = 0.2
OF_CURL = 0.5
ABOVE_IDEAL = 1.2
RUN_RATIO, RUN_SECONDS = 1.2, 0.05
"""Relative to the runtime alone on a prepared bundle, plus this many seconds."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target in one case. `value` is None if a figure is missing; then the target is not met."""

    experiment: str
    case: str
    measured: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def verdicts(results: Results) -> Iterator[Verdict]:
    """Return a verdict for every target that the experiments of this run cover."""
    yield from _first_cat(results)
    yield from _pull(results)
    yield from _warm_views(results)
    yield from _cold_views(results)
    yield from _views(results)
    yield from _content(results)
    yield from _daemon(results)
    yield from _requests(results)
    yield from _numbers(results)
    yield from _metadata(results)
    yield from _active(results)
    yield from _fetch(results)
    yield from _runs(results)


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _first_cat(results: Results) -> Iterator[Verdict]:
    for case in results.cases(starts.FIRST):
        own = results.median(starts.FIRST, case, Imgfs.name)
        if case == starts.STARTED:
            continue
        if case.endswith("far"):
            floor = results.median(starts.FIRST, case, ShellFloor.name)
            yield Verdict(starts.FIRST, case, "imgfs / floor", _ratio(own, floor), ABOVE_FAR_FLOOR, at_least=False)
        elif case.startswith("tiny"):
            peer = results.median(starts.FIRST, case, SkopeoUmoci.name)
            yield Verdict(starts.FIRST, case, "imgfs / skopeo + umoci", _ratio(own, peer), LEVEL, at_least=False)
        else:
            peer = results.least(starts.FIRST, case, PEERS)
            yield Verdict(starts.FIRST, case, "best peer / imgfs", _ratio(peer, own), TIMES_FASTER, at_least=True)


def _pull(results: Results) -> Iterator[Verdict]:
    for case in results.cases(starts.PULLED):
        own = results.median(starts.PULLED, case, Imgfs.name)
        peer = results.least(starts.PULLED, case, PEERS)
        floor = results.median(starts.PULLED, case, ThreadPipeline.name)
        yield Verdict(starts.PULLED, case, "best peer / imgfs", _ratio(peer, own), TIMES_FASTER, at_least=True)
        yield Verdict(
            starts.PULLED, case, "imgfs / thread pipeline", _ratio(own, floor), ABOVE_PIPELINE, at_least=False
        )
        used = results.median(starts.DISK, case, Imgfs.name)
        whole = results.median(starts.DISK, case, starts.UNCOMPRESSED)
        yield Verdict(starts.DISK, case, "imgfs / uncompressed", _ratio(used, whole), DISK_RATIO, at_least=False)


def _native(results: Results, experiment: str, case: str) -> float | None:
    """Return the better of the two ways to mount the image of mkfs.erofs."""
    return results.most(experiment, case, kernel_views.NATIVE)


def _warm_views(results: Results) -> Iterator[Verdict]:
    for case in results.cases(kernel_views.WARM_VIEW):
        if scenes.SEQUENTIAL in case:
            continue
        own = results.median(kernel_views.WARM_VIEW, case, Imgfs.name)
        native = _ratio(own, _native(results, kernel_views.WARM_VIEW, case))
        directory = _ratio(own, results.median(kernel_views.WARM_VIEW, case, scenes.DIRECTORY))
        yield Verdict(kernel_views.WARM_VIEW, case, "imgfs / mkfs.erofs", native, 1 / NEARLY, at_least=True)
        yield Verdict(kernel_views.WARM_VIEW, case, "imgfs / ext4 directory", directory, 1 / LEVEL, at_least=True)


def _cold_views(results: Results) -> Iterator[Verdict]:
    for experiment in (kernel_views.COLD_VIEW, kernel_views.COLD_ON_DISK):
        yield from _cold_view(results, experiment)


def _cold_view(results: Results, experiment: str) -> Iterator[Verdict]:
    for case in results.cases(experiment):
        own = results.median(experiment, case, Imgfs.name)
        native = _native(results, experiment, case)
        if scenes.SEQUENTIAL in case:
            value = _ratio(own, native)
            yield Verdict(experiment, case, "imgfs / mkfs.erofs", value, COLD_SEQUENTIAL, at_least=True)
        elif scenes.WALK.name in case:
            value = _ratio(native, own)
            yield Verdict(experiment, case, "time, imgfs / mkfs.erofs", value, COLD_WALK, at_least=False)


def _views(results: Results) -> Iterator[Verdict]:
    for case in results.cases(views.VIEWS):
        own = results.median(views.VIEWS, case, Imgfs.name)
        other = _ratio(own, results.median(views.VIEWS, case, views.RATARMOUNT))
        if case.endswith(f"{scenes.WALK.name} {WARM}"):
            yield Verdict(views.VIEWS, case, "imgfs, entries/s", own, WALK_PER_SECOND, at_least=True)
        elif scenes.FILES.name in case:
            yield Verdict(views.VIEWS, case, "imgfs / ratarmount", other, FILES_RATIO, at_least=True)
        elif scenes.SEQUENTIAL in case:
            yield Verdict(views.VIEWS, case, "imgfs / ratarmount", other, 1.0, at_least=True)


def _content(results: Results) -> Iterator[Verdict]:
    """Yield the verdicts. The bound of a rate is the lower of a fixed figure and a share of the disk's own rate."""
    bounds = {ingests.INGEST: INGEST_MEGABYTES, ingests.READ_WARM: WARM_MEGABYTES}
    commits = {ingests.COMMIT, *map(ingests.commit_when, ingests.FLUSHES)}
    medians = {
        (case, name): results.median(ingests.CONTENT, case, name)
        for case in results.cases(ingests.CONTENT)
        for name in (Imgfs.name, ingests.COPIED, ingests.SYNCED, ingests.SMALL, ingests.LARGE)
    }
    for case in results.cases(ingests.CONTENT):
        own = medians[case, Imgfs.name]
        if case in bounds:
            copied = medians[case, ingests.COPIED]
            bound = min(bounds[case], OF_THE_DISK * copied) if copied else bounds[case]
            yield Verdict(ingests.CONTENT, case, "imgfs, MB/s", own, bound, at_least=True)
        elif case in commits:
            value = _ratio(own, medians[case, ingests.SYNCED])
            yield Verdict(ingests.CONTENT, case, "imgfs / fsync", value, COMMIT_RATIO, at_least=False)
        elif case == ingests.MEMORY:
            value = _ratio(medians[case, ingests.LARGE], medians[case, ingests.SMALL])
            measured = f"{ingests.LARGE} / {ingests.SMALL}"
            yield Verdict(ingests.CONTENT, case, measured, value, FLAT, at_least=False)


def _daemon(results: Results) -> Iterator[Verdict]:
    bounds = {
        memory.START: ("s", START_SECONDS),
        memory.VIEW: ("MB", VIEW_MEGABYTES),
        memory.LOADING: ("MB", LOADING_MEGABYTES),
    }
    for case in results.cases(memory.DAEMON):
        if case in bounds:
            unit, bound = bounds[case]
            own = results.median(memory.DAEMON, case, Imgfs.name)
            yield Verdict(memory.DAEMON, case, f"imgfs, {unit}", own, bound, at_least=False)


def _requests(results: Results) -> Iterator[Verdict]:
    for case in results.cases(contacts.REQUESTS):
        label, _, what = case.partition(" ")
        layers = len(RECIPE_OF[label.partition(":")[0]].makers)
        bound = {
            contacts.FIRST_CONTACT: contacts.expected_at_first_contact(layers),
            contacts.COMPLETE: 0,
            contacts.TAG_CHECK: 1,
        }[what]
        own = results.median(contacts.REQUESTS, case, Imgfs.name)
        yield Verdict(contacts.REQUESTS, case, "imgfs, requests", own, bound, at_least=False)


def _numbers(results: Results) -> Iterator[Verdict]:
    few, some, many = map(scale.contestant, scale.KNOWN)
    for kind in scale.KINDS if results.cases(scale.NUMBERS) else ():
        for case, other in ((scale.lookup(kind), few), (scale.listing(kind), some)):
            value = _ratio(*(results.median(scale.NUMBERS, case, known) for known in (many, other)))
            yield Verdict(scale.NUMBERS, case, f"{many} / {other}", value, SCALED, at_least=False)
    if results.cases(scale.NUMBERS):
        case = scale.listing(scale.BLOBS)
        entry = results.median(scale.NUMBERS, case, many)
        whole = entry * scale.KNOWN[-1] / 1e6 if entry else None
        yield Verdict(
            scale.NUMBERS, f"listing of {scale.KNOWN[-1]:,} blobs", "imgfs, s", whole, LISTING_SECONDS, at_least=False
        )


def _metadata(results: Results) -> Iterator[Verdict]:
    bounds = {
        metadata.MOUNTED: ("s", MOUNT_SECONDS),
        metadata.BUILT: ("us", BUILD_MICROSECONDS),
        metadata.SIZE: ("bytes", ENTRY_BYTES),
    }
    for case in results.cases(metadata.METADATA):
        if case in bounds:
            unit, bound = bounds[case]
            own = results.median(metadata.METADATA, case, Imgfs.name)
            yield Verdict(metadata.METADATA, case, f"imgfs, {unit}", own, bound, at_least=False)


def _active(results: Results) -> Iterator[Verdict]:
    for case in results.cases(writable.ACTIVE):
        own = results.median(writable.ACTIVE, case, Imgfs.name)
        value = _ratio(own, results.median(writable.ACTIVE, case, writable.OVERLAY))
        yield Verdict(writable.ACTIVE, case, "imgfs / overlayfs on ext4", value, 1 / NEARLY, at_least=True)


def _fetch(results: Results) -> Iterator[Verdict]:
    def median(case: str, name: str) -> float | None:
        return results.median(fetch.FETCH, case, name)

    for case in results.cases(fetch.FETCH):
        own = median(case, fetch.ImgfsByFile.name)
        if case.startswith(fetch.SINGLE):
            bound = OF_CURL if case.endswith(fetch.NEAR) else 1 / LEVEL
            for kind in (fetch.ImgfsBlob, fetch.ImgfsByFile):
                value = _ratio(median(case, fetch.CurlSha256.name), median(case, kind.name))
                measured = f"rate, {kind.name} / curl"
                yield Verdict(fetch.FETCH, case, measured, value, bound, at_least=True)
        else:
            value = _ratio(own, median(case, fetch.IDEAL))
            yield Verdict(fetch.FETCH, case, "imgfs / ideal", value, ABOVE_IDEAL, at_least=False)
        if case.endswith((fetch.NEAR, fetch.FAR)):
            floor = _ratio(own, median(case, ThreadPipeline.name))
            yield Verdict(fetch.FETCH, case, "imgfs / thread pipeline", floor, ABOVE_PIPELINE, at_least=False)
            peer = _ratio(results.least(fetch.FETCH, case, PEERS), own)
            yield Verdict(fetch.FETCH, case, "best peer / imgfs", peer, 1.0, at_least=True)


def _runs(results: Results) -> Iterator[Verdict]:
    if not results.cases(runs.RUN):
        return
    own, crowd = (results.median(runs.RUN, case, Imgfs.name) for case in (runs.ALONE, runs.CROWD))
    for peer in runs.PEERS:
        value = _ratio(results.median(runs.RUN, runs.ALONE, peer), own)
        yield Verdict(runs.RUN, runs.ALONE, f"{peer} / imgfs", value, 1.0, at_least=True)
    floor = results.least(runs.RUN, runs.ALONE, runs.FLOORS)
    bound = RUN_RATIO * floor + RUN_SECONDS if floor is not None else RUN_SECONDS
    yield Verdict(runs.RUN, runs.ALONE, "imgfs, s", own, bound, at_least=False)
    together = runs.AT_ONCE * own / (os.cpu_count() or 1) if own is not None else 0.0
    yield Verdict(runs.RUN, runs.CROWD, "imgfs, s", crowd, together, at_least=False)
