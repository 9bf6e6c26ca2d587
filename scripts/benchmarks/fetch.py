"""fetch: one large layer against curl, a slower link, and many small layers on a far link; all are verified.

`memory.loading` measures the memory for many images at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from .bench import Bench, given_up, recorded, say, timed
from .contestants import PULL, Contestant, Imgfs
from .images import Image
from .results import Unit
from .servers import FAR_MBPS, FAR_RTT_MS, Address, ShapedLink

FETCH = "fetch"
SINGLE, SMALL_LAYERS = "single:tar", ("thin:gz", "hundred:gz")
LINK_MBPS = 200
NEAR, LINKED, FAR = "near", f"at {LINK_MBPS} MB/s", "far"
IDEAL = "ideal"
ROUND_TRIPS = 4
"""Round trips: one connection and the manifest; parallel connections and the blobs."""


def layers_of(address: Address, label: str) -> list[dict[str, str]]:
    """Return the layers' descriptors, from the registry's manifest."""
    name, _, tag = label.partition(":")
    return json.loads(address.request("GET", f"/v2/{name}/manifests/{tag}")[2])["layers"]


class CurlSha256(Contestant):
    """Only the blob, hashed and not stored."""

    name = "curl + sha256sum"
    _SCRIPT: ClassVar[str] = 'set -o pipefail; curl -sSf "$1" | sha256sum'

    def pull(self, registry: Address, label: str) -> float:
        (layer,) = layers_of(registry, label)
        url = f"http://{registry.host}/v2/{label.partition(':')[0]}/blobs/{layer['digest']}"
        seconds, printed = timed(lambda: self.run("bash", "-c", self._SCRIPT, "curl", url, self.room / "blob"))
        if printed.split()[0] != layer["digest"].removeprefix("sha256:"):
            raise ValueError(f"{url}: the bytes have the digest {printed}")
        return seconds


class CurlToFile(CurlSha256):
    """Only the blob, hashed and stored in a file."""

    name = "curl + file + sha256sum"
    _SCRIPT: ClassVar[str] = 'set -o pipefail; curl -sSf "$1" | tee "$2" | sha256sum'


class ImgfsBlob(Imgfs):
    """Only the blob, read as a file of content/. imgfs stores it durably before it returns the first byte."""

    name = "imgfs, cat content/DIGEST"

    def pull(self, registry: Address, label: str) -> float:
        (layer,) = layers_of(registry, label)
        self.image(registry, label).stat()
        blob = self.mountpoint / "content" / layer["digest"]
        seconds, _ = timed(lambda: self.run("bash", "-c", 'cat "$1" > /dev/null', "cat", blob))
        return seconds


class ImgfsByFile(Imgfs):
    """The image, pulled by reading the mount's file for it: without the start of a command in Python."""

    name = "imgfs, cat NAME/pull"

    def pull(self, registry: Address, label: str) -> None:
        self.run("cat", self.image(registry, label) / "pull")


LARGE = (CurlSha256, CurlToFile, ImgfsBlob, ImgfsByFile, *PULL)
LINKED_ONES = (CurlSha256, ImgfsBlob, ImgfsByFile, Imgfs)
SMALL = (ImgfsByFile, *PULL)


def single(bench: Bench) -> None:
    """One layer of 500 MB, uncompressed: near, and on a link that is slower than every contestant."""
    if bench.wants(SINGLE):
        (image,) = bench.images([SINGLE])
        _race(bench, image, bench.registry.near, NEAR, LARGE)
        with ShapedLink(bench.registry, bench.work, mbps=LINK_MBPS) as link:
            _race(bench, image, link.address, LINKED, LINKED_ONES)


def small_layers(bench: Bench) -> None:
    """60 layers of 200 KB, and 100 of 1 MB, on the far link; beside them the time of the link alone."""
    for image in bench.images(label for label in SMALL_LAYERS if bench.wants(label)):
        size = sum(int(layer["size"]) for layer in layers_of(bench.registry.near, image.label))
        ideal = bench.results.row(FETCH, f"{image.label} {FAR}", IDEAL, Unit.SECONDS)
        ideal.samples.append(ROUND_TRIPS * FAR_RTT_MS / 1e3 + size / (FAR_MBPS * 1e6))
        ideal.note = f"{ROUND_TRIPS} round trips, and {size / 1e6:.0f} MB at {FAR_MBPS} MB/s"
        with ShapedLink(bench.registry, bench.work, FAR_RTT_MS, FAR_MBPS) as far:
            _race(bench, image, far.address, FAR, SMALL)


def _race(bench: Bench, image: Image, address: Address, where: str, kinds: Sequence[type[Contestant]]) -> None:
    case = f"{image.label} {where}"
    say(f"{FETCH} {case}")
    for kind in bench.rounds(kinds):
        row = bench.results.row(FETCH, case, kind.name, Unit.SECONDS)
        if not given_up(row):
            with recorded(row), bench.entered(kind) as contestant:
                seconds, own = timed(lambda: contestant.pull(address, image.label))
                row.samples.append(seconds if own is None else own)
