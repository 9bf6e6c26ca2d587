"""Every step that changes the disk, counted: one of them kills the process or fails, after all before it were done."""

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
    """Call `act` in place of the step of that number, from 1; yields how many steps there were so far.

    A transaction is two steps: before it begins, and when it is durable but nobody knows.
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
    """Do `work` in a process of its own; whether a signal ended that. A process that fails fails the test."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
