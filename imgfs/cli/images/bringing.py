"""Waiting for an image to come or go: in another thread, so that this one can draw and Ctrl-C ends it at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeVar

from imgfs.cli.images.naming import Found
from imgfs.cli.tree import Status, Tree

POLL = 0.2
"""Seconds between two looks at status.json."""

T = TypeVar("T")
Draw = Callable[[Status], None]


def bring(tree: Tree, found: Found, wait: Callable[[], object], *, quiet: bool) -> None:
    """Call `wait`, which returns when what is wanted of the image is here; meanwhile draw how much of it is.

    Nothing is drawn where stderr is no terminal. Fails with the daemon's reason where `wait` raises OSError. Ctrl-C
    ends it as it ends `beside`.
    """
    try:
        with _progress(quiet=quiet) as draw:
            beside(wait, lambda: _show(tree, found.digest, draw))
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None


def beside(wait: Callable[[], T], look: Callable[[], object]) -> T:
    """What `wait` returns, with a call of `look` now and then meanwhile, and one at the end. Raises OSError as `wait`.

    Ctrl-C leaves the waiting thread to end with the process: the daemon sets it free as soon as it sees it dying.
    """
    results: list[T] = []
    failures: list[OSError] = []
    ended = threading.Event()

    def waiting() -> None:
        try:
            results.append(wait())
        except OSError as error:
            failures.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=waiting, daemon=True).start()
    except RuntimeError:  # the limit for processes; what is looked at is a courtesy
        waiting()
    while not ended.wait(POLL):
        look()
    look()
    if failures:
        raise failures[0]
    return results[0]


def _show(tree: Tree, digest: str, draw: Draw | None) -> None:
    """Progress is a courtesy: if it cannot be read, the waiter tells why."""
    if draw is not None:
        with suppress(OSError):
            draw(tree.status(digest))


@contextmanager
def _progress(*, quiet: bool) -> Generator[Draw | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from imgfs.cli.progress import image_progress

    with image_progress() as draw:
        yield draw
