"""Damage each file of a state directory in turn: check reports it, repair repairs it, the next check is clean."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.disk.calls import HostDisk
from tests.check.scene import HARMS, Damage, picture

NAMED = [
    *(("blobs/*/*/*", harm) for harm in ("cut", "flip")),
    *(("layers/*/*/tar", harm) for harm in HARMS),
    *(("layers/*/*/index", harm) for harm in ("cut", "flip")),
    *(("views/*.erofs", harm) for harm in ("cut", "flip")),
    *(("ingest/*/meta", harm) for harm in HARMS),
    ("ingest/*/data", "delete"),
    ("ingest/*/data", "cut"),
    *(("imgfs.db", harm) for harm in HARMS),
    *(("imgfs.copy", harm) for harm in ("cut", "flip")),
]
"""Damage that check must report. Changed bytes of an unfinished write are not listed: only the sender knows them."""
HARMLESS = [
    *((name, harm) for name in ("log", "lock", "imgfs.db.reserve") for harm in HARMS),
    *((pattern, "delete") for pattern in ("blobs/*/*/*", "layers/*/*/index", "views/*.erofs", "imgfs.copy")),
]
"""Damage that check must not report, because the daemon fetches or writes the file again."""


def place_of(state: Path, path: Path) -> str:
    place = str(path.relative_to(state)).removesuffix("/tar")
    return place.rpartition("/")[0] if place.startswith("ingest/") else place


def test_a_whole_state_directory_is_clean_and_is_not_changed(unmounted: Damage) -> None:
    before = picture(unmounted.state)
    for command in ("check", "repair"):
        assert unmounted.run(command) == (0, [])
        assert unmounted.run(command, "--deep") == (0, [])
    assert picture(unmounted.state) == before


@pytest.mark.parametrize(("pattern", "harm"), NAMED)
def test_damage_is_reported_repaired_and_the_content_is_served_again(
    unmounted: Damage, pattern: str, harm: str
) -> None:
    path = unmounted.only(pattern)
    size = path.stat().st_size
    HARMS[harm](path)
    place = place_of(unmounted.state, path)
    if harm == "cut" and pattern.startswith(("blobs", "layers", "ingest")):
        assert unmounted.damaged() == [place]  # without --deep, check compares sizes and reads no content
    assert unmounted.damaged("--deep") == [place]
    code, report = unmounted.run("repair", "--deep")
    assert (code, [one["path"] for one in report]) == (0, [place])
    assert report[0]["mended"]
    assert unmounted.damaged("--deep") == []
    assert unmounted.run("repair", "--deep") == (0, [])
    if not (pattern.startswith(("views", "imgfs.copy", "layers/*/*/index")) or harm == "delete" or "data" in pattern):
        kept = list(unmounted.state.rglob("*damaged*"))
        assert kept, "repair never deletes the only copy of a damaged object"
        assert any(one.is_dir() or one.stat().st_size in (size, size // 2) for one in kept)
    unmounted.mounted.start()
    unmounted.assert_served()


@pytest.mark.parametrize(("pattern", "harm"), HARMLESS)
def test_files_that_the_daemon_recreates_are_not_damage(unmounted: Damage, pattern: str, harm: str) -> None:
    HARMS[harm](unmounted.only(pattern))
    assert unmounted.damaged("--deep") == []
    unmounted.mounted.start()
    unmounted.assert_served()


def test_damage_of_many_files_at_once_is_repaired(unmounted: Damage) -> None:
    for pattern in ("imgfs.db", "blobs/*/*/*", "layers/*/*/tar", "layers/*/*/index", "views/*.erofs"):
        for path in sorted(unmounted.state.glob(pattern)):
            HARMS["flip"](path)
    assert unmounted.damaged("--deep")
    assert unmounted.run("repair", "--deep")[0] == 0
    assert unmounted.damaged("--deep") == []
    unmounted.mounted.start()
    unmounted.assert_served(labelled=False)


def test_damage_that_only_a_user_can_repair_is_reported_and_left(unmounted: Damage) -> None:
    shutil.rmtree(unmounted.state / "snapshots/1")
    (unmounted.state / "imgfs.toml").write_text("acces = 1")
    assert unmounted.damaged() == ["imgfs.toml", "snapshots/1"]
    code, report = unmounted.run("repair")
    assert (code, [one["mended"] for one in report]) == (6, [False, False])


def test_an_invalid_row_is_damage_and_no_other_row_is_lost(unmounted: Damage) -> None:
    with closing(sqlite3.connect(unmounted.state / "imgfs.db")) as db:
        db.execute("UPDATE user_snapshots SET kind = 'odd' WHERE name = CAST('view' AS BLOB)")
        db.execute("UPDATE lease_links SET resource = CAST('nowhere' AS BLOB)")
        db.commit()
    assert unmounted.damaged() == ["imgfs.db"]
    code, report = unmounted.run("repair")
    assert (code, [one["path"] for one in report]) == (0, ["imgfs.db"])
    assert unmounted.damaged("--deep") == []
    unmounted.mounted.start()
    unmounted.assert_served()


@pytest.mark.parametrize(
    "pattern", ["blobs/*/*/*", "layers/*/*/tar", "layers/*/*/index", "ingest/*/meta", "imgfs.copy"]
)
def test_a_fifo_in_place_of_a_file_is_set_aside(unmounted: Damage, pattern: str) -> None:
    path = unmounted.only(pattern)
    path.unlink()
    os.mkfifo(path)  # opening a FIFO would block forever
    place = place_of(unmounted.state, path).removesuffix("/index")
    assert unmounted.damaged("--deep") == [place]
    code, report = unmounted.run("repair", "--deep")
    assert (code, [one["path"] for one in report]) == (0, [place])
    assert unmounted.damaged("--deep") == []
    unmounted.mounted.start()
    unmounted.assert_served()


def test_a_disk_error_in_one_repair_does_not_stop_the_others(
    unmounted: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = unmounted.only("blobs/*/*/*"), unmounted.only("layers/*/*/tar")
    for path in (broken, other):
        HARMS["cut"](path)
    real = HostDisk.rename

    def refusing(self: HostDisk, old: Path, new: Path) -> None:
        if old == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, old, new)

    monkeypatch.setattr(HostDisk, "rename", refusing)
    code, report = unmounted.run("repair")
    assert code == 6
    assert {one["path"]: one["mended"] for one in report} == {
        place_of(unmounted.state, broken): False,
        place_of(unmounted.state, other): True,
    }
    assert "Input/output error" in str(report)


def test_an_unknown_directory_of_changes_becomes_a_snapshot(unmounted: Damage) -> None:
    stray = unmounted.state / "snapshots/77/upper"
    stray.mkdir(parents=True)
    stray.with_name("work").mkdir()
    (stray / "work").write_text("mine")
    assert unmounted.damaged() == ["snapshots/77"]
    assert unmounted.run("repair")[0] == 0
    assert unmounted.damaged() == []
    unmounted.mounted.start()
    unmounted.assert_served()
    found = unmounted.mounted.snapshots / "active/recovered-77"
    assert (found / "rootfs/work").read_text() == "mine"


def test_a_file_name_that_is_not_text_is_reported_and_left(unmounted: Damage) -> None:
    odd = os.fsencode(unmounted.state) + b"/blobs/sha256/aa"
    os.makedirs(odd, exist_ok=True)
    with open(odd + b"/\xff", "wb"):
        pass
    assert unmounted.damaged("--deep") == []
    done = unmounted.mounted.run("repair", "--state", str(unmounted.state))
    assert (done.returncode, done.stdout.split(":")[:2]) == (0, ["note", " blobs/sha256/aa/\\udcff"])


def test_the_text_output_has_one_line_per_finding(unmounted: Damage) -> None:
    HARMS["cut"](unmounted.only("imgfs.copy"))
    run = unmounted.mounted.run
    done = run("check", "--state", str(unmounted.state))
    assert (done.returncode, done.stdout.count("\n")) == (6, 1)
    assert done.stdout.startswith("imgfs.copy: cannot be read")
    assert "findings: 1;" in done.stderr
    done = run("repair", "--state", str(unmounted.state))
    assert (done.returncode, done.stdout.startswith("mended: imgfs.copy: ")) == (0, True)


def test_a_missing_state_directory_is_an_error(unmounted: Damage, tmp_path: Path) -> None:
    done = unmounted.mounted.run("check", "--state", str(tmp_path / "nowhere"))
    assert (done.returncode, "no such state directory" in done.stderr) == (3, True)
