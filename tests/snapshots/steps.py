"""Count the steps that change the disk, and kill the process or fail at one of them. All earlier steps are done."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from imgfs.database.database import Database

CALLS = ("mkdir", "chmod", "chown", "utime", "setxattr", "fsync", "rename", "rmdir", "unlink")


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[Callable[[], int]]:
    """Call `act`, which raises or kills, before step `number` (from 1). Yields a function that counts.

    A transaction has two steps: before it begins, and after it is durable but before the caller is told.
    """
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 1
        if taken == number:
            act()

    def stepping(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            step()
            return real(*arguments, **options)

        return call

    transact: Callable[..., Any] = Database._transact

    def transaction(database: Database, change: Callable[[sqlite3.Connection], Any]) -> Any:
        step()
        result = transact(database, change)
        if act is kill:
            step()
        return result

    patches = [patch.object(os, name, stepping(getattr(os, name))) for name in CALLS]
    patches.append(patch.object(Database, "_transact", transaction))
    for one in patches:
        one.start()
    try:
        yield lambda: taken
    finally:
        for one in patches:
            one.stop()


def kill() -> None:
    """Die as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies(work: Callable[[], None]) -> bool:
    """Run `work` in a child process and return whether a signal ended it. A child that fails fails the test."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
