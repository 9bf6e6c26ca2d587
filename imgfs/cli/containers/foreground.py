"""Start containers in the foreground or background: the implementation of `imgfs run` and `imgfs start`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from imgfs.cli.containers.attaching import Front
from imgfs.cli.containers.site import site_of
from imgfs.cli.failure import Failure, report_line
from imgfs.cli.forked import forked_command
from imgfs.cli.images.lookup import ChosenImage, find
from imgfs.cli.images.waiting import bring
from imgfs.cli.tree import Tree
from imgfs.execution.bundle.overrides import Overrides, parse_memory, parse_variable, parse_volume
from imgfs.execution.launch import IdleSupervisor
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.start import (
    CallerStreams,
    PulledImage,
    Site,
    StartedContainer,
    StartOptions,
    start_again,
    start_new,
)


def run_new(waiting: IdleSupervisor, mountpoint: str, image: str, *, quiet: bool, **wanted: Any) -> None:
    """Fetch an image and start a container from it. `wanted` are the options of `imgfs run`."""
    wish = _wish(**wanted)
    detach = bool(wanted["detach"])
    tree, site = _tree_and_site(mountpoint)
    source = _source(tree, find(tree, image, quiet=quiet), image, quiet=quiet)
    front = Front(terminal=wish.terminal, interactive=wish.interactive) if not detach else None
    manner = StartOptions(wanted["id"], detach, bool(wanted["remove"]))
    _follow(front, lambda attached: start_new(site, source, wish, manner, attached, waiting))


def run_again(waiting: IdleSupervisor, mountpoint: str, id: str, *, attach: bool, interactive: bool) -> None:
    """Start an ended container again."""
    _, site = _tree_and_site(mountpoint)
    container = ContainerRecords(site.state).get(id).container()
    front = Front(terminal=container.tty, interactive=interactive) if attach else None
    _follow(front, lambda attached: start_again(site, id, attached, waiting))


def _tree_and_site(mountpoint: str) -> tuple[Tree, Site]:
    """Return the tree and the site. Facts that the fork server knows are not read from the tree again."""
    tree, by = Tree(os.path.abspath(mountpoint)), forked_command()
    facts = by.facts if by else None
    if facts is None or not facts.are_of(tree):
        return (tree := Tree.open(mountpoint)), site_of(tree)
    return tree, site_of(tree, facts)


def _follow(front: Front | None, begin: Callable[[CallerStreams], StartedContainer]) -> None:
    """Start a container; stay in the foreground, or print its ID."""
    with ExitStack() as held:
        attached = front.attached(held) if front else CallerStreams()
        started = begin(attached)
        held.callback(started.control.close)
        for note in started.notes:
            report_line(note)
        if front is None:
            _name(started.id)
            return
        status, notes = front.stay(started.control)
    for note in notes:
        report_line(note)
    if status.exit_code is None:
        raise Failure(status.reason, errno.EIO)
    raise SystemExit(status.exit_code)


def _name(id: str) -> None:
    """Print the ID of a background container.

    The container runs even if stdout cannot be written to. As in podman and docker that is not a failure; the ID is
    printed on stderr then.
    """
    try:
        click.echo(id)
    except OSError as error:
        report_line(f"container {id}: has started, but its ID cannot be written to stdout: {error.strerror}")


def _wish(**wanted: Any) -> Overrides:
    return Overrides(
        arguments=wanted["arguments"],
        entrypoint=wanted["entrypoint"],
        env=dict(parse_variable(one, os.environ) for one in wanted["variables"]),
        user=wanted["user"],
        working_dir=wanted["workdir"],
        volumes=tuple(parse_volume(one) for one in wanted["volumes"]),
        network=wanted["network"],
        read_only=wanted["read_only"],
        terminal=wanted["terminal"],
        interactive=wanted["interactive"],
        memory=parse_memory(wanted["memory"]) if wanted["memory"] else None,
    )


def _source(tree: Tree, found: ChosenImage, image: str, *, quiet: bool) -> PulledImage:
    """Return the image. All of it is local on return."""
    chain: list[str] = []

    def pull() -> None:
        chain.append(tree.pull(found.digest))

    try:
        # A complete image needs no progress bar.
        drawn = not quiet and os.isatty(2) and not tree.status(found.digest)["complete"]
        bring(tree, found, pull, quiet=not drawn)
        config = tree.read(f"{tree.image(found.digest)}/config.json")
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None
    return PulledImage(image, found.digest, chain[0], config)
