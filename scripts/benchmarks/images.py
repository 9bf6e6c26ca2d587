"""The catalogue of the benchmark's images. They are made once and kept as OCI layouts.

Owns recipes and layouts; the content of layers comes from `layers`.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import layers
from .processes import run

Maker = Callable[[Path], None]

RECIPES = "2"
"""Part of the cache's path. Raise it when a recipe changes."""

SINGLE_FILE = 500_000_000
BIG_LARGE_FILE = 160_000_000
LOADED_AT_ONCE = 16
_PYTHON = ("python3", "python3-numpy", "python3-pandas")
_CREATED = "2023-11-14T22:13:20Z"
_MEDIA_TYPE = "application/vnd.oci.image"
_TAG = "org.opencontainers.image.ref.name"
_COMPRESSORS = {
    "gz": ("+gzip", ("pigz", "-n", "-6", "-c")),
    "zst": ("+zstd", ("zstd", "-q", "-3", "-T0", "-c")),
    "tar": ("", ("cat",)),
}
"""By variant: the suffix of the layer's media type, and the command that compresses."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an image's layers are made, base first, and in which compressions it exists."""

    name: str
    makers: tuple[Maker, ...]
    variants: tuple[str, ...] = ("gz",)


def _difference_to_base(path: Path) -> None:
    whole = path.with_name("whole.tar")
    layers.debian(whole, _PYTHON)
    layers.difference(path.with_name("0.tar"), whole, path)
    whole.unlink()


def _loaded(number: int) -> Recipe:
    own = partial(layers.medium_files, total=24_000_000, seed=1000 + number, directory=f"data{number}")
    return Recipe(f"load{number:02}", (layers.busybox, own))


RECIPE_OF = {
    recipe.name: recipe
    for recipe in (
        Recipe("tiny", (layers.busybox,)),
        Recipe("base", (layers.debian,), ("gz", "zst")),
        Recipe(
            "big",
            (
                layers.busybox,
                partial(layers.one_large_file, size=BIG_LARGE_FILE, seed=11),
                partial(layers.medium_files, total=250_000_000, seed=12),
            ),
        ),
        Recipe("many", (layers.busybox, partial(layers.small_files, directories=520, seed=13))),
        Recipe("double", (layers.busybox, partial(layers.small_files, directories=1040, seed=14))),
        Recipe("python", (layers.debian, _difference_to_base)),
        Recipe("single", (partial(layers.one_large_file, size=SINGLE_FILE, seed=15),), ("tar",)),
        Recipe("thin", tuple(partial(layers.noise, size=200_000, seed=number) for number in range(60))),
        Recipe("hundred", tuple(partial(layers.noise, size=1_000_000, seed=100 + number) for number in range(100))),
        *(_loaded(number) for number in range(LOADED_AT_ONCE)),
    )
}


@dataclass(frozen=True, slots=True)
class Image:
    """An image in one compression: its layout, its uncompressed layers, and the expected result of reading it."""

    name: str
    variant: str
    layout: Path
    tars: tuple[Path, ...]

    @property
    def label(self) -> str:
        return f"{self.name}:{self.variant}"

    @property
    def uncompressed_bytes(self) -> int:
        return sum(tar.stat().st_size for tar in self.tars)

    def os_release(self) -> str:
        """Return the content of /etc/os-release, from the lowest layer. Links are followed."""
        with tarfile.open(self.tars[0]) as tar:
            name = next(name for name in ("etc/os-release", "./etc/os-release") if name in tar.getnames())
            data = tar.extractfile(name)
            assert data is not None
            return data.read().decode()


class Catalogue:
    """Images below a working directory. An existing image is reused."""

    def __init__(self, work: Path) -> None:
        self._top = work / f"images-{RECIPES}"

    def image(self, label: str) -> Image:
        """Make the image `name:variant` unless it exists. Raises Failed if a tool fails."""
        name, _, variant = label.partition(":")
        recipe, place = RECIPE_OF[name], self._top / name
        (place / "layout/blobs/sha256").mkdir(parents=True, exist_ok=True)
        tars = tuple(_made(place, number, maker) for number, maker in enumerate(recipe.makers))
        image = Image(name, variant, place / "layout", tars)
        if variant not in tags(image.layout):
            _add_variant(image)
        return image

    def everything_of(self, name: str) -> list[Image]:
        return [self.image(f"{name}:{variant}") for variant in RECIPE_OF[name].variants]


def _made(place: Path, number: int, maker: Maker) -> Path:
    path, part = place / f"{number}.tar", place / f"{number}.new.tar"
    if not path.exists():
        maker(part)
        part.rename(path)
    return path


def tags(layout: Path) -> dict[str, str]:
    """Return digest by tag of an OCI layout, empty if the layout does not exist yet."""
    index = layout / "index.json"
    entries = json.loads(index.read_text())["manifests"] if index.exists() else []
    return {entry["annotations"][_TAG]: entry["digest"] for entry in entries}


def _add_variant(image: Image) -> None:
    """Write blobs, config, manifest, and the index last, so that an interrupted run leaves no partial image."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": _CREATED,
        "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["cat", "/etc/os-release"]},
        "rootfs": {"type": "layers", "diff_ids": [_sha256(tar) for tar in image.tars]},
        "history": [{"created": _CREATED, "created_by": f"imgfs bench {image.name}"} for _ in image.tars],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA_TYPE}.manifest.v1+json",
        "config": _json_blob(image.layout, f"{_MEDIA_TYPE}.config.v1+json", config),
        "layers": [_layer_blob(image, tar) for tar in image.tars],
    }
    entry = _json_blob(image.layout, manifest["mediaType"], manifest)
    index = image.layout / "index.json"
    listed = json.loads(index.read_text()) if index.exists() else {"schemaVersion": 2, "manifests": []}
    listed["manifests"].append({**entry, "annotations": {_TAG: image.variant}})
    (image.layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index.write_text(json.dumps(listed))


def _layer_blob(image: Image, tar: Path) -> dict[str, object]:
    suffix, command = _COMPRESSORS[image.variant]
    part = image.layout / "part"
    run("bash", "-c", 'out=$1; shift; "$@" > "$out"', "bash", part, *command, tar)
    return _stored(image.layout, part, f"{_MEDIA_TYPE}.layer.v1.tar{suffix}")


def _json_blob(layout: Path, media_type: str, value: object) -> dict[str, object]:
    part = layout / "part"
    part.write_text(json.dumps(value, separators=(",", ":"), sort_keys=True))
    return _stored(layout, part, media_type)


def _stored(layout: Path, part: Path, media_type: str) -> dict[str, object]:
    """Move a file into the layout's blobs, and return its descriptor."""
    digest, size = _sha256(part), part.stat().st_size
    part.rename(layout / "blobs" / digest.replace(":", "/"))
    return {"mediaType": media_type, "digest": digest, "size": size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
