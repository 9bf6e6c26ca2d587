"""Wait for a pull or push in a second thread, so that the main thread can draw progress and react to Ctrl-C at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeVar

from imgfs.cli.images.lookup import ChosenImage
from imgfs.cli.tree import ImageStatus, Tree

POLL = 0.2
"""Seconds between two reads of status.json."""

T = TypeVar("T")
Draw = Callable[[ImageStatus], None]


def bring(tree: Tree, found: ChosenImage, wait: Callable[[], object], *, quiet: bool) -> None:
    """Call `wait`, which returns when the wanted part of the image is local, and draw progress until then.

    Draws nothing if stderr is not a terminal. Raises Failure with the daemon's reason if `wait` raises OSError. Ctrl-C
    ends the call as it ends `beside`.
    """
    try:
        with _progress(quiet=quiet) as draw:
            beside(wait, lambda: _show(tree, found.digest, draw))
    except OSError as error:
        raise tree.failure(error, found.digest, found.subject) from None


def beside(wait: Callable[[], T], look: Callable[[], object]) -> T:
    """Return what `wait` returns; call `look` every POLL seconds until then, and once at the end. Raises as `wait`.

    On Ctrl-C the waiting thread ends with the process: the daemon answers its request when it sees the process dying.
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
    except RuntimeError:  # no thread can be started (process limit): wait without progress
        waiting()
    while not ended.wait(POLL):
        look()
    look()
    if failures:
        raise failures[0]
    return results[0]


def _show(tree: Tree, digest: str, draw: Draw | None) -> None:
    """Draw the current status. A failure to read it is ignored, because the waiting thread reports the reason."""
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
