"""`imgfs pull`: one image, all of it, durably, with progress while it comes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import click

from imgfs.cli.naming import Found, find
from imgfs.cli.options import Command, image_argument, mountpoint_option, quiet_option
from imgfs.cli.tree import Status, Tree

POLL = 0.2
"""Seconds between two looks at status.json."""

Draw = Callable[[Status], None]


@click.command(cls=Command)
@image_argument
@mountpoint_option
@click.option("--refresh", is_flag=True, help="Ask the registry what the name stands for now, though it is known here.")
@quiet_option
def pull(image: str, mountpoint: str, refresh: bool, quiet: bool) -> None:
    """Get the whole of IMAGE here and print its digest.

    IMAGE is a name (`alpine:3.20` stands for docker.io/library/alpine:3.20), a registered local name, or a digest. On
    return the image survives a power cut and needs no registry. What is here already is not fetched again; what
    Ctrl-C interrupts goes on where it was when somebody asks again.
    """
    tree = Tree.open(mountpoint)
    found = find(tree, image, quiet=quiet, refresh=refresh)
    with _progress(quiet) as draw:
        _bring(tree, found, draw)
    click.echo(found.digest)


def _bring(tree: Tree, found: Found, draw: Draw | None) -> None:
    """Wait in another thread, so that this one can draw and Ctrl-C ends it at once: the process takes the waiter along.

    The daemon sets the waiter free as soon as it sees it dying.
    """
    failures: list[OSError] = []
    ended = threading.Event()
    threading.Thread(target=_wait, args=(tree, found.digest, failures, ended), daemon=True).start()
    while not ended.wait(POLL):
        _show(tree, found.digest, draw)
    _show(tree, found.digest, draw)
    if failures:
        raise tree.failure(failures[0], found.digest, found.subject)


def _wait(tree: Tree, digest: str, failures: list[OSError], ended: threading.Event) -> None:
    """Opening the image's unlisted `pull` returns when all of it is here and on disk."""
    try:
        with open(tree.pull_door(digest), "rb"):
            pass
    except OSError as error:
        failures.append(error)
    finally:
        ended.set()


def _show(tree: Tree, digest: str, draw: Draw | None) -> None:
    """Progress is a courtesy: if it cannot be read, the waiter tells why."""
    if draw is not None:
        with suppress(OSError):
            draw(tree.status(digest))


@contextmanager
def _progress(quiet: bool) -> Generator[Draw | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from imgfs.cli.progress import image_progress

    with image_progress() as draw:
        yield draw
