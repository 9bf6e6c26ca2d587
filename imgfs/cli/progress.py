"""Progress bars on a terminal. Imported only if stderr is a terminal, because rich is slow to import."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from imgfs.cli.table import short_digest
from imgfs.cli.tree import ImagePart, ImageStatus

_POLL = 0.2
_TOTAL = "total"
_WORDS = {"local": "here", "absent": "waiting", "loading": "loading", "failed": "failed"}


@contextmanager
def image_progress(console: Console | None = None) -> Generator[Callable[[ImageStatus], None]]:
    """Show a bar for each layer and one for the whole image on stderr while the context is open."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[word]}", markup=False),
    )
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def draw(status: ImageStatus) -> None:
            for number, part in enumerate(status["parts"]):
                if part["kind"] == "layer":
                    _move(progress, bars, f"{number} {short_digest(part['digest'])}", part)
            _move_total(progress, bars, status)

        yield draw


@contextmanager
def byte_progress(total: int | None, console: Console | None = None) -> Generator[Callable[[int], None]]:
    """Show one bar on stderr for bytes that are written. `total` is None if it is unknown."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total)

        def draw(done: int) -> None:
            progress.update(bar, completed=done)

        yield draw


@contextmanager
def push_progress(console: Console | None = None) -> Generator[Callable[[int, int, int], None]]:
    """Show one bar on stderr for a push. The yielded function takes bytes done, bytes in total, and blobs in flight."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("{task.fields[word]}", markup=False))
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        bar = progress.add_task("", total=None, word="")

        def draw(done: int, total: int, running: int) -> None:
            progress.update(bar, completed=done, total=total, word=f"{running} blobs in flight" if running else "")

        yield draw


def _move(progress: Progress, bars: dict[str, TaskID], key: str, part: ImagePart) -> None:
    if key not in bars:
        bars[key] = progress.add_task(short_digest(part["digest"]), total=part["size"], word="")
    progress.update(bars[key], completed=part["offset"], word=_WORDS.get(part["state"], part["state"]))


def _move_total(progress: Progress, bars: dict[str, TaskID], status: ImageStatus) -> None:
    total = sum(part["size"] for part in status["parts"])
    if _TOTAL not in bars:
        bars[_TOTAL] = progress.add_task(_TOTAL, total=total, word="")
    here = sum(part["offset"] for part in status["parts"])
    progress.update(bars[_TOTAL], completed=here, total=total, word="complete" if status["complete"] else "")


def watch(render: Callable[[], tuple[str, bool]], console: Console | None = None) -> None:
    """Show what `render` returns, repeatedly, until its second value says that this was the last one."""
    with Live(console=console or Console(), auto_refresh=False) as live:
        while True:
            text, is_last = render()
            live.update(Text(text, no_wrap=True), refresh=True)
            if is_last:
                return
            time.sleep(_POLL)
