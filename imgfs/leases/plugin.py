"""The kind of plugin that keeps things from garbage collection, and the built-in one: leases, pins and times of use."""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.leases.clock import AccessClock
from imgfs.leases.pins import Pins
from imgfs.leases.store import Leases
from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.program import DATABASE


@dataclass(frozen=True, slots=True)
class Holds:
    """What keeps things stored: leases of clients, pins of running operations, and how recently a thing was used."""

    leases: Leases
    pins: Pins
    uses: AccessClock


LEASES = Kind("leases", Holds)


def _holds(context: Context) -> Holds:
    database = context.one(DATABASE)
    return Holds(Leases(database), Pins(), AccessClock(database))


LOCAL = Plugin(LEASES, "local", _holds, requires=(DATABASE,))
