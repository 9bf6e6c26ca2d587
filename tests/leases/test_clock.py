"""The access clock: exact in memory, coarse on disk."""

from __future__ import annotations

from pathlib import Path

from imgfs.database.database import Database
from imgfs.leases.clock import COARSE, SCHEMA, AccessClock
from imgfs.oci.digest import Digest

ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


async def test_access_times_survive_a_restart_with_coarse_precision(tmp_path: Path) -> None:
    now = COARSE

    def open_clock() -> tuple[Database, AccessClock]:
        database = Database(tmp_path / "imgfs.db", [SCHEMA])
        return database, AccessClock(database, lambda: now)

    database, clock = open_clock()
    clock.touched(ONE)
    clock.touched(TWO)
    await clock.save()
    now += 1
    clock.touched(ONE)
    assert clock.last_used(ONE) == COARSE + 1
    await clock.save()
    await clock.forget([TWO, Digest.of(b"unknown")])
    assert clock.last_used(TWO) is None
    database.close()
    database, clock = open_clock()
    assert clock.last_used(ONE) == COARSE  # a use one nanosecond later is not saved
    assert clock.last_used(TWO) is None
    now += COARSE
    clock.touched(ONE)
    await clock.save()
    database.close()
    database, clock = open_clock()
    assert clock.last_used(ONE) == now
    database.close()


async def test_access_times_increase_even_if_the_clock_is_set_back(tmp_path: Path) -> None:
    times = iter([5000, 10, 20])
    database = Database(tmp_path / "imgfs.db", [SCHEMA])
    clock = AccessClock(database, lambda: next(times))
    for digest in (ONE, TWO, ONE):
        clock.touched(digest)
    one, two = clock.last_used(ONE), clock.last_used(TWO)
    assert one is not None
    assert two is not None
    assert 5000 < two < one
    database.close()
