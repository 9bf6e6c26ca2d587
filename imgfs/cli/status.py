"""`imgfs status`: what of an image is here, what is not, what is on its way, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from imgfs.cli.naming import Found, find_registered
from imgfs.cli.options import Command, complete_name, format_option, mountpoint_option, quiet_option
from imgfs.cli.table import human_size, render_json, render_table, short_digest
from imgfs.cli.tree import Part, Status, Tree


@click.command(cls=Command)
@click.argument("image", required=False, metavar="[IMAGE]", shell_complete=complete_name)
@mountpoint_option
@format_option("table")
@click.option("--watch", is_flag=True, help="Draw again and again on the terminal, until all is here or Ctrl-C.")
@quiet_option
def status(image: str | None, mountpoint: str, form: str, watch: bool, quiet: bool) -> None:
    """Show how much of IMAGE, or of every image, is here.

    Of IMAGE each part gets a line, else each named image does. JSON is the image's status.json, without IMAGE an
    array of them. Asks no registry.
    """
    _check_watch(watch, form)
    tree = Tree.open(mountpoint)
    look = _look(tree, find_registered(tree, image, quiet=quiet) if image is not None else None)
    if watch:
        from imgfs.cli.progress import watch as draw

        draw(lambda: _drawn(look(), image))
        return
    found = look()
    if form == "json":
        click.echo(render_json(found if image is None else found[0]))
    else:
        click.echo(_text(found, image))


def _check_watch(watch: bool, form: str) -> None:
    if watch and form == "json":
        raise click.UsageError("--watch draws a table; poll status.json of the image for JSON")
    if watch and not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal on stdout")


def _look(tree: Tree, found: Found | None) -> Callable[[], list[Status]]:
    if found is None:
        return lambda: _all(tree)
    return lambda: [_one(tree, found)]


def _all(tree: Tree) -> list[Status]:
    statuses: list[Status] = []
    for digest in tree.digests():
        try:
            statuses.append(tree.status(digest))
        except FileNotFoundError:
            continue  # its last name went while this command ran
    return statuses


def _one(tree: Tree, found: Found) -> Status:
    try:
        return tree.status(found.digest)
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None


def _drawn(statuses: list[Status], image: str | None) -> tuple[str, bool]:
    is_last = image is not None and all(one["complete"] for one in statuses)
    return _text(statuses, image), is_last


def _text(statuses: list[Status], image: str | None) -> str:
    return _overview(statuses) if image is None else _details(statuses[0])


def _overview(statuses: list[Status]) -> str:
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


def _details(one: Status) -> str:
    facts = [
        ("image", one["digest"]),
        *(("name", name) for name in one["names"]),
        ("platform", one["platform"]),
        ("complete", f"{'yes' if one['complete'] else 'no'}, {_share(one['parts'])} is here"),
        ("lazy", "yes" if one["lazy"] else f"no: {one['why']}"),
        *([("error", one["error"])] if one["error"] else []),
    ]
    width = max(len(key) for key, _ in facts) + 2
    lines = [f"{key:<{width}}{value}" for key, value in facts]
    head = ("PART", "STATE", "HERE", "SIZE", "DIGEST", "NOTE")
    return "\n".join([*lines, "", render_table(head, [_row(part) for part in one["parts"]], right={2, 3})])


def _row(part: Part) -> tuple[str, ...]:
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


def _loading(parts: list[Part]) -> str:
    loading = [part for part in parts if part["state"] == "loading"]
    if not loading:
        return "-"
    return f"{len(loading)} of {len(parts)} parts, {_share(loading)}"


def _share(parts: list[Part]) -> str:
    if not parts:
        return "nothing known"
    here, total = sum(part["offset"] for part in parts), sum(part["size"] for part in parts)
    return f"{human_size(here)} of {human_size(total)}"


def _percent(here: int, total: int) -> str:
    return f"{here * 100 // total if total else 100}%"
