"""Mending what a check found: derived files go, damaged ones are set aside. The only copy of anything is never deleted.

Nothing else may use the state directory meanwhile: the caller holds its lock. Doing it twice is doing it once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from imgfs.check.checks import ASIDE as DAMAGED
from imgfs.check.finding import ASIDE, REMOVE, Finding
from imgfs.content.durable import fsync_path
from imgfs.errors import from_os


def mend(state: Path, finding: Finding) -> bool:
    """Do what `finding.mend` says; returns whether anything was to be done. Raises NoSpace, StorageFailed."""
    path = state / finding.path
    try:
        if finding.mend == REMOVE:
            _remove(path)
        elif finding.mend == ASIDE:
            path.rename(_free(path))
            fsync_path(path.parent)
        else:
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_os(error, finding.path) from None
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        for name in os.listdir(path):
            (path / name).unlink()
        path.rmdir()
    else:
        path.unlink()
    fsync_path(path.parent)


def _free(path: Path) -> Path:
    """A name for a damaged thing that no earlier one has."""
    return next(name for name in _names(path) if not os.path.lexists(name))


def _names(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.name}{DAMAGED}")
    number = 1
    while True:
        number += 1
        yield path.with_name(f"{path.name}.{number}{DAMAGED}")
