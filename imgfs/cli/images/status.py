"""`imgfs status`: show which parts of an image are local or in flight, and why a part is missing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import click

from imgfs.cli.images.lookup import ChosenImage, find_registered
from imgfs.cli.options import Command, complete_name, format_option, mountpoint_option, quiet_option
from imgfs.cli.table import human_seconds, human_size, render_json, render_table, short_digest
from imgfs.cli.tree import ImagePart, ImageStatus, TransferDocument, Tree


@dataclass(frozen=True, slots=True)
class _Seen:
    """The result of one poll: the status of one image, or of all images and all running transfers."""

    images: list[ImageStatus]
    transfers: list[TransferDocument] = field(default_factory=list[TransferDocument])


@click.command(cls=Command)
@click.argument("image", required=False, metavar="[IMAGE]", shell_complete=complete_name)
@mountpoint_option
@format_option("table")
@click.option("--watch", is_flag=True, help="Redraw on the terminal until everything is local, or until Ctrl-C.")
@quiet_option
def status(image: str | None, mountpoint: str, form: str, *, watch: bool, quiet: bool) -> None:
    """Show how much of IMAGE, or of every image, is local.

    With IMAGE the command prints a line for each part. Without IMAGE it prints a line for each named image, and one for
    each running pull or push with its rate and remaining time. JSON is the image's status.json, or without IMAGE an
    object with the arrays `images` and `transfers`. Sends no request.
    """
    _check_watch(watch=watch, form=form)
    tree = Tree.open(mountpoint)
    found = find_registered(tree, image, quiet=quiet) if image is not None else None
    if watch:
        from imgfs.cli.progress import watch as draw

        draw(lambda: _drawn(_look(tree, found), found))
        return
    seen = _look(tree, found)
    if form == "table":
        click.echo(_text(seen, found))
    elif found is None:
        click.echo(render_json({"images": seen.images, "transfers": seen.transfers}))
    else:
        click.echo(render_json(seen.images[0]))


def _check_watch(*, watch: bool, form: str) -> None:
    if watch and form == "json":
        raise click.UsageError("--watch draws a table; poll status.json of the image for JSON")
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal on stdout")


def _look(tree: Tree, found: ChosenImage | None) -> _Seen:
    return _Seen(_all(tree), tree.transfers()) if found is None else _Seen([_one(tree, found)])


def _all(tree: Tree) -> list[ImageStatus]:
    statuses: list[ImageStatus] = []
    for digest in tree.digests():
        try:
            statuses.append(tree.status(digest))
        except FileNotFoundError:
            continue  # the image's last name was removed while this command ran
    return statuses


def _one(tree: Tree, found: ChosenImage) -> ImageStatus:
    try:
        return tree.status(found.digest)
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None


def _drawn(seen: _Seen, found: ChosenImage | None) -> tuple[str, bool]:
    is_last = found is not None and all(one["complete"] for one in seen.images)
    return _text(seen, found), is_last


def _text(seen: _Seen, found: ChosenImage | None) -> str:
    if found is not None:
        return _details(seen.images[0])
    images = _overview(seen.images)
    return f"{images}\n\n{_on_their_way(seen.transfers)}" if seen.transfers else images


def _overview(statuses: list[ImageStatus]) -> str:
    rows = [
        (
            short_digest(one["digest"]),
            "yes" if one["complete"] else "no",
            _share(one["parts"]),
            _loading(one["parts"]),
            ", ".join(one["names"]),
        )
        for one in statuses
    ]
    return render_table(("DIGEST", "COMPLETE", "HERE", "LOADING", "NAMES"), rows)


def _on_their_way(transfers: list[TransferDocument]) -> str:
    rows = [
        (
            one["direction"],
            short_digest(one["digest"]),
            _percent(one["offset"], one["total"]),
            human_size(one["total"]),
            f"{human_size(one['rate'])}/s",
            "-" if one["eta"] is None else human_seconds(one["eta"]),
            f"{one['host']}/{one['repository']}".rstrip("/"),
            _tried(one),
        )
        for one in transfers
    ]
    head = ("TRANSFER", "BLOB", "DONE", "SIZE", "RATE", "LEFT", "WHERE", "NOTE")
    return render_table(head, rows, right={2, 3, 4, 5})


def _tried(one: TransferDocument) -> str:
    return f"try {one['attempts']}: {one['error']}" if one["error"] else ", ".join(one["names"])


def _details(one: ImageStatus) -> str:
    facts = [
        ("image", one["digest"]),
        *(("name", name) for name in one["names"]),
        ("platform", one["platform"]),
        ("complete", f"{'yes' if one['complete'] else 'no'}, {_share(one['parts'])} is local"),
        ("lazy", "yes" if one["lazy"] else f"no: {one['why']}"),
        *([("error", one["error"])] if one["error"] else []),
    ]
    width = max(len(key) for key, _ in facts) + 2
    lines = [f"{key:<{width}}{value}" for key, value in facts]
    head = ("PART", "STATE", "HERE", "SIZE", "DIGEST", "NOTE")
    return "\n".join([*lines, "", render_table(head, [_row(part) for part in one["parts"]], right={2, 3})])


def _row(part: ImagePart) -> tuple[str, ...]:
    note = ""
    if part["state"] == "failed":
        note = part["error"] or ""
    elif part["state"] == "loading" and part["where"]:
        note = f"from {part['where']}"
    return (
        part["kind"],
        part["state"],
        _percent(part["offset"], part["size"]),
        human_size(part["size"]),
        short_digest(part["digest"]),
        note,
    )


def _loading(parts: list[ImagePart]) -> str:
    loading = [part for part in parts if part["state"] == "loading"]
    if not loading:
        return "-"
    return f"{len(loading)} of {len(parts)} parts, {_share(loading)}"


def _share(parts: list[ImagePart]) -> str:
    if not parts:
        return "unknown"
    here, total = sum(part["offset"] for part in parts), sum(part["size"] for part in parts)
    return f"{human_size(here)} of {human_size(total)}"


def _percent(here: int, total: int) -> str:
    return f"{here * 100 // total if total else 100}%"
