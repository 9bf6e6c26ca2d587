"""Check reports files of the wrong type. The daemon does not start with them, and repair cannot repair them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.check.examiner import Examiner

KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b""),
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


def found(state: Path) -> list[str]:
    with Examiner(state, []) as examiner:
        return [one.path for place in examiner.places() if (one := examiner.examine(place)) and one.is_damage]


@pytest.mark.parametrize("name", ["lock", "log", "log.1"])
def test_a_directory_in_place_of_a_file_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert found(tmp_path) == [name]


@pytest.mark.parametrize("name", ["blobs", "layers", "views", "ingest", "snapshots"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_file_in_place_of_a_directory_is_reported(tmp_path: Path, name: str, kind: str) -> None:
    KINDS[kind](tmp_path / name)
    assert found(tmp_path) == [name]
