"""Durable writes: fsync, rename, fsync of the directory; and the sweep of temporary files after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.disk.durable import (
    TEMPORARY,
    fsync_path,
    make_directory,
    publish,
    sweep,
    temporary_name,
    write_file,
)
from tests.content.full_disk import Calls


def test_a_file_is_synced_renamed_and_its_directory_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    write_file(tmp_path / "final", b"data")
    assert calls.names() == ["fsync", "rename", "fsync"]
    assert calls.seen[0][1].startswith(str(tmp_path / TEMPORARY))
    assert calls.seen[1:] == [("rename", str(tmp_path / "final")), ("fsync", str(tmp_path))]
    assert (tmp_path / "final").read_bytes() == b"data"


def test_a_file_that_exists_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "final").write_bytes(b"old and long")
    with (tmp_path / "final").open("rb") as reader:
        write_file(tmp_path / "final", b"new")
        assert reader.read() == b"old and long"
    assert (tmp_path / "final").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "final").write_bytes(b"old")
    Calls(monkeypatch).errors[call] = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        write_file(tmp_path / "final", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"final": b"old"}


def test_every_new_directory_is_made_durable_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    make_directory(tmp_path / "a" / "b" / "c")
    assert calls.seen == [("fsync", str(tmp_path / name)) for name in ("", "a", "a/b")]
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o700
    make_directory(tmp_path / "a" / "b" / "c")
    assert len(calls.seen) == 3


def test_publishing_moves_directories_too(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    publish(tmp_path / "temporary", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_the_sweep_removes_only_temporary_names(tmp_path: Path) -> None:
    (tmp_path / temporary_name()).write_bytes(b"half")
    directory = tmp_path / temporary_name()
    (directory / "below").mkdir(parents=True)
    (directory / "below" / "file").write_bytes(b"")
    (tmp_path / temporary_name()).symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / temporary_name()).write_bytes(b"not in this directory")
    (tmp_path / f"x{TEMPORARY}").write_bytes(b"")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", f"x{TEMPORARY}"]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_temporary_names_are_unique() -> None:
    assert len({temporary_name() for _ in range(100)}) == 100


def test_syncing_leaks_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fsync_path(tmp_path)
    Calls(monkeypatch).errors["fsync"] = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        fsync_path(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
