"""What plugins of this room are."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.leases.clock import AccessClock
from imgfs.leases.pins import Pins
from imgfs.leases.store import Leases
from imgfs.plugins.contract import Kind


@dataclass(frozen=True, slots=True)
class Holds:
    """What keeps things here: for long, for as long as work is in progress, and because they were used not long ago."""

    leases: Leases
    pins: Pins
    uses: AccessClock


LEASES = Kind("leases", Holds)
