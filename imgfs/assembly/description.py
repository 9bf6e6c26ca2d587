"""The content of `.imgfs/state.json`: facts about this daemon, and what its host allows."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from imgfs import __version__
from imgfs.assembly.mounting import Mounting
from imgfs.encoding import indented_json
from imgfs.rescue.rebuild import Rebuilt
from imgfs.rootfs.terms import Terms


def describe(mounting: Mounting, started: int, terms: Terms, rebuilt: Rebuilt | None, *, is_read_only: bool) -> bytes:
    """Return the facts as JSON.

    `started` is in ns since the epoch; `rebuilt` says how the database was rebuilt, if it was.
    """
    state = {
        "version": __version__,
        "pid": os.getpid(),
        "mountpoint": told(mounting.mountpoint),
        "state": told(mounting.state),
        "read_only": is_read_only or mounting.is_read_only,
        "started": started,
        "platform": str(mounting.config.chosen_platform),
        "access": mounting.config.access,
        "views": "kernel" if terms.is_root and terms.capabilities.erofs else "fuse",
        "trusted": terms.trusted,
        "database": asdict(rebuilt) if rebuilt else "whole",
        "mounts": {name: one.reason or "works" for name, one in terms.capabilities.by_name().items()},
    }
    return indented_json(state)


def told(path: Path) -> str:
    """Return the path as valid text. Bytes that are not UTF-8 become escapes."""
    return bytes(path).decode(errors="backslashreplace")
