"""Abandoned unfinished writes are garbage after a week, and not earlier, even if the clock is set."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.mount.ingesting import APPEND, declare, put, writing
from tests.support.mounted import Mounted

DAY = 86400


@pytest.fixture
def ingest(mounted: Mounted) -> Path:
    return mounted.content / "ingest"


def aged(mounted: Mounted, days: dict[str, int], *, started: int | None = None) -> None:
    """Restart the daemon with refs that were last used the given number of days ago."""
    mounted.stop()
    for directory in (mounted.state / "ingest").iterdir():
        meta = json.loads((directory / "meta").read_bytes())
        if meta["ref"] in days:
            then = time.time_ns() - days[meta["ref"]] * DAY * 10**9
            meta |= {"updated": then, "started": then if started is None else started}
            (directory / "meta").write_text(json.dumps(meta))
            os.utime(directory / "data", ns=(then, then))
    mounted.start()


def gc(mounted: Mounted, *options: str) -> dict[str, str]:
    """Return what is collected, and why."""
    done = mounted.run("gc", "--format", "json", *options)
    assert done.returncode == 0, done.stderr
    return {item["id"]: item["why"] for item in json.loads(done.stdout)["removed"]}


def test_what_nobody_goes_on_with_for_a_week_is_garbage(mounted: Mounted, ingest: Path) -> None:
    for ref in ("old", "a%2Fb", "young", "today", "future"):
        put(ingest / ref, b"1" * 5000)
    aged(mounted, {"old": 8, "a/b": 100, "young": 6, "future": -100})
    foretold = gc(mounted, "--dry-run")
    assert set(foretold) == {"old", "a%2Fb"}
    assert "8 days" in foretold["old"]
    assert len(os.listdir(ingest)) == 5
    assert "old" in mounted.run("gc", "--dry-run").stdout
    assert set(gc(mounted)) == {"old", "a%2Fb"}
    assert sorted(os.listdir(ingest)) == ["future", "today", "young"]
    assert len(list((mounted.state / "ingest").iterdir())) == 3
    assert gc(mounted, "--all") == {}
    put(ingest / "old", b"again")


def test_who_touches_an_old_one_keeps_it(mounted: Mounted, ingest: Path) -> None:
    refs = ("appended", "declared", "leased", "live", "renamed")
    for ref in refs:
        put(ingest / ref, b"1" * 5000)
    aged(mounted, dict.fromkeys(refs, 30))
    assert set(gc(mounted, "--dry-run")) == set(refs)
    with writing(ingest / "appended", APPEND) as file:
        os.write(file, b"2")
    declare(ingest / "declared", total=10_000)
    lease = mounted.path / ".imgfs/leases/mine"
    lease.mkdir()
    (lease / "it").symlink_to("../../../content/ingest/leased")
    (ingest / "renamed").rename(ingest / "new")
    with writing(ingest / "live", APPEND):
        assert gc(mounted) == {}
    assert gc(mounted) == {}
    lease.joinpath("it").unlink()
    assert set(gc(mounted)) == {"leased"}


def test_a_clock_that_was_set_back_while_it_was_written_makes_it_young(mounted: Mounted, ingest: Path) -> None:
    put(ingest / "confused", b"1")
    aged(mounted, {"confused": 10_000}, started=time.time_ns())
    assert gc(mounted) == {}


def test_how_long_is_the_configurations_to_say(tmp_path: Path) -> None:
    with Mounted(tmp_path, f"ingest_idle_seconds = {60 * DAY}\n") as mounted:
        mounted.start()
        for ref in ("old", "older"):
            put(mounted.content / "ingest" / ref, b"1")
        aged(mounted, {"old": 30, "older": 90})
        assert set(gc(mounted)) == {"older"}
