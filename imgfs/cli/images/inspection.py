"""`imgfs inspect`: show an image's manifest and config. Fetches no layer."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, TypedDict

import click

from imgfs.cli.images.lookup import ChosenImage, find
from imgfs.cli.options import Command, format_option, image_argument, mountpoint_option, quiet_option
from imgfs.cli.table import human_size, render_json, render_table, short_digest
from imgfs.cli.tree import Tree


class InspectedLayer(TypedDict):
    """One layer. Layers are listed base first; `size` is the size of the compressed blob in bytes."""

    digest: str
    diff_id: str | None
    media_type: str
    size: int


class Inspection(TypedDict):
    """The JSON of `imgfs inspect`. `manifest`, `config` and `index` (null without an index) are the whole documents."""

    name: str | None
    digest: str
    names: list[str]
    platform: str
    platforms: list[str]
    layers: list[InspectedLayer]
    manifest: Any
    config: Any
    index: Any


@click.command(cls=Command)
@image_argument
@mountpoint_option
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Show this platform of an index. Default: the mount's.")
@format_option("json")
@quiet_option
def inspect(image: str, mountpoint: str, platform: str | None, form: str, *, quiet: bool) -> None:
    """Show IMAGE's manifest and config.

    JSON contains name, digest, platforms, layers, and the documents unchanged. The command fetches documents that are
    not local, but no layer.
    """
    tree = Tree.open(mountpoint)
    found = find(tree, image, quiet=quiet)
    inspection = _inspect(tree, found, platform)
    click.echo(render_json(inspection) if form == "json" else _summary(inspection))


def _inspect(tree: Tree, found: ChosenImage, platform: str | None) -> Inspection:
    from imgfs.oci.manifest import Manifest, parse_config, parse_document

    image = tree.image(found.digest)
    directory = image if platform is None else _platform_directory(tree, found, platform)
    manifest_bytes = _read(tree, found, f"{directory}/manifest.json")
    config_bytes = _read(tree, found, f"{directory}/config.json")
    index_bytes = _read_index(tree, found, image)
    manifest, config = parse_document(manifest_bytes), parse_config(config_bytes)
    layers = manifest.layers if isinstance(manifest, Manifest) else ()
    return {
        "name": found.name,
        "digest": found.digest,
        "names": tree.status(found.digest)["names"],
        "platform": str(config.platform),
        "platforms": _platforms(index_bytes) or [str(config.platform)],
        "layers": [
            {"digest": layer.digest, "diff_id": diff_id, "media_type": layer.media_type, "size": layer.size}
            for layer, diff_id in zip_longest(layers, config.diff_ids[: len(layers)])
        ],
        "manifest": _json(manifest_bytes, "manifest"),
        "config": _json(config_bytes, "image config"),
        "index": None if index_bytes is None else _json(index_bytes, "image index"),
    }


def _platform_directory(tree: Tree, found: ChosenImage, text: str) -> str:
    """Return the directory of the platform that matches `text`. Raises Invalid; NotFound, which lists the platforms."""
    from imgfs.oci.platform import choose, parse_platform

    wanted = parse_platform(text)
    index = _read_index(tree, found, tree.image(found.digest))
    offered = [parse_platform(one) for one in _platforms(index)]
    chosen = choose(wanted, offered)
    if chosen is None:
        from imgfs.errors import NotFound

        there = ", ".join(map(str, offered)) or "one image and no index"
        raise NotFound(f"{found.subject}: has nothing for {wanted}; it has {there}")
    return f"{tree.image(found.digest)}/platforms/{offered[chosen].slug}"


def _read(tree: Tree, found: ChosenImage, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject, path) from None


def _read_index(tree: Tree, found: ChosenImage, image: str) -> bytes | None:
    """Return the index, or None for a manifest. Opening index.json fetches the document, which decides that."""
    try:
        with open(f"{image}/index.json", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None


def _platforms(index: bytes | None) -> list[str]:
    from imgfs.oci.manifest import ImageIndex, parse_document

    document = parse_document(index) if index is not None else None
    if not isinstance(document, ImageIndex):
        return []
    return [str(one.platform) for one in document.manifests if one.platform and one.platform.os != "unknown"]


def _json(data: bytes, what: str) -> Any:
    from imgfs.oci.manifest import decode_json

    return decode_json(data, what)


def _summary(inspection: Inspection) -> str:
    facts = [
        ("name", inspection["name"] or "-"),
        ("digest", inspection["digest"]),
        ("platform", inspection["platform"]),
        ("platforms", ", ".join(inspection["platforms"])),
        ("layers", f"{len(inspection['layers'])}, {human_size(sum(one['size'] for one in inspection['layers']))}"),
    ]
    rows = [
        (str(number), human_size(one["size"]), short_digest(one["digest"]), one["media_type"])
        for number, one in enumerate(inspection["layers"])
    ]
    lines = [f"{key:<11}{value}" for key, value in facts]
    return "\n".join([*lines, "", render_table(("LAYER", "SIZE", "DIGEST", "MEDIA TYPE"), rows, right={0, 1})])
