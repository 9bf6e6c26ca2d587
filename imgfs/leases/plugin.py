"""Leases and times of use in the database, pins in memory."""

from __future__ import annotations

from imgfs.leases.clock import AccessClock
from imgfs.leases.kinds import LEASES, Holds
from imgfs.leases.pins import Pins
from imgfs.leases.store import Leases
from imgfs.plugins.contract import Context, Plugin
from imgfs.plugins.program import DATABASE


def _holds(context: Context) -> Holds:
    database = context.one(DATABASE)
    return Holds(Leases(database), Pins(), AccessClock(database))


LOCAL = Plugin(LEASES, "local", _holds, requires=(DATABASE,))
