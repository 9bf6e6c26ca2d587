"""`imgfs logs`: print the output of a container, unchanged."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from contextlib import ExitStack
from itertools import chain
from typing import BinaryIO

import click

from imgfs.cli.containers.lookup import complete_container, existing, has_ended, last_state
from imgfs.cli.options import Command, mountpoint_option
from imgfs.cli.tree import Tree

BREATH = 0.2
"""Seconds between two polls of a growing log."""


@click.command(cls=Command)
@click.argument("id", metavar="ID", shell_complete=complete_container)
@click.option("-f", "--follow", is_flag=True, help="Continue until the container has ended.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Print only the last N lines.")
@mountpoint_option
def logs(id: str, *, follow: bool, tail: int | None, mountpoint: str) -> None:
    """Print the stdout and stderr of a container.

    Output to a terminal is not logged. Output beyond the configured log size is dropped, oldest first.
    """
    tree = Tree.open(mountpoint)
    one = existing(tree, id)
    try:
        _print(tree, one, tail, follow=follow)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise tree.container_failure(error, one) from None


def _print(tree: Tree, id: str, tail: int | None, *, follow: bool) -> None:
    name = f"{tree.container(id)}/log"
    with ExitStack() as opened:
        log = opened.enter_context(open(name, "rb"))
        files = [*_older(opened, name), log]
        if tail is None:
            for file in files:
                _copy(file)
        else:
            sys.stdout.buffer.writelines(deque(chain(*files), maxlen=tail))
            sys.stdout.buffer.flush()
        while follow:
            # The order matters: output written before the end is in the log when the end is seen.
            is_last = _has_ended(tree, id)
            _copy(log)
            following = _next(name, log)
            if following is not None:
                _copy(log)
                log = opened.enter_context(following)
            elif is_last:
                return
            else:
                time.sleep(BREATH)


def _older(opened: ExitStack, name: str) -> list[BinaryIO]:
    """Open the rotated log, if there is one."""
    try:
        return [opened.enter_context(open(f"{name}.1", "rb"))]
    except FileNotFoundError:
        return []


def _copy(file: BinaryIO) -> None:
    """Print `file` from its current position to its end."""
    shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _next(name: str, log: BinaryIO) -> BinaryIO | None:
    """Return the new log after a rotation; None if the log is the same or was deleted."""
    try:
        is_same = os.stat(name).st_ino == os.fstat(log.fileno()).st_ino
        return None if is_same else open(name, "rb")
    except FileNotFoundError:
        return None


def _has_ended(tree: Tree, id: str) -> bool:
    return not os.path.lexists(tree.container(id)) or has_ended(last_state(tree, id))
