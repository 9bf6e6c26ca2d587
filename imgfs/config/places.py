"""Where things lie unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from imgfs.errors import Invalid

FILE_NAME = "imgfs.toml"


def default_state() -> Path:
    """Where state lies unless --state says: $STATE_DIRECTORY, root's /var/lib/imgfs-state, a user's XDG state home.

    Raises Invalid where the user has none.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/imgfs-state")
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "imgfs"
    try:
        return Path.home() / ".local/state/imgfs"
    except RuntimeError:
        raise Invalid(f"user {os.geteuid()}: has no home directory; name a state directory with --state") from None
