"""Objects that the daemon itself provides. Plugins require them by kind, as they require other plugins."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

from imgfs.assembly.mounting import Mounting
from imgfs.assembly.tables import TABLES
from imgfs.content.plugin import ERA, Era
from imgfs.database.database import Database
from imgfs.kernel.disk import era
from imgfs.kernel.probe import Capabilities, Capability, probe
from imgfs.plugins.program import CONFIG, DATABASE
from imgfs.plugins.started import Given
from imgfs.rescue.keeper import KEEPER, Keeper
from imgfs.rescue.rebuild import TABLES as TABLES_KIND
from imgfs.rescue.rebuild import Rebuilt
from imgfs.rootfs.plugin import TERMS
from imgfs.rootfs.terms import Terms

_log = logging.getLogger("imgfs.daemon")


@dataclass(frozen=True, slots=True)
class Opened:
    """The open database, how it was rebuilt (if it was), its copy, and whether the state directory is read-only."""

    database: Database
    rebuilt: Rebuilt | None
    keeper: Keeper
    is_frozen: bool


def given(mounting: Mounting, opened: Opened) -> list[Given]:
    """Return what the daemon provides to plugins."""
    return [
        Given(CONFIG, mounting.config),
        Given(DATABASE, opened.database),
        Given(TABLES_KIND, TABLES),
        Given(KEEPER, opened.keeper),
        Given(ERA, Era(era(mounting.state))),
        Given(TERMS, _terms(mounting)),
    ]


def _terms(mounting: Mounting) -> Terms:
    return Terms(
        str(mounting.mountpoint),
        _capabilities(mounting),
        is_root=os.geteuid() == 0,
        trusted=mounting.is_trusted,
        private=mounting.config.is_private,
        read_only=mounting.is_read_only,
    )


def _capabilities(mounting: Mounting) -> Capabilities:
    """Return what this host can mount. Each refusal is logged once; `.imgfs/state.json` shows it too."""
    found = probe(mounting.state)
    if mounting.config.views == "fuse":
        off = Capability("the configuration says views = fuse")
        found = replace(found, erofs=off, overlay_over_erofs=off)
    for name, capability in found.by_name().items():
        if not capability:
            _log.info("cannot be mounted here", extra={"what": name, "reason": capability.reason})
    return found
