"""Read-only bind mounts of a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.errors import NotFound
from imgfs.kernel.bind import bind, bind_read_only
from imgfs.kernel.mounts import unmount
from tests.kernel.pieces import directory, mounts_of, options, powerless


@pytest.mark.parametrize(("trusted", "expected"), [(True, set[str]()), (False, {"nosuid", "nodev"})])
def test_the_bind_is_read_only_and_the_original_is_not(place: Path, trusted: bool, expected: set[str]) -> None:
    source, target = directory(place / "source", a="1"), directory(place / "target")
    bind_read_only(str(source), str(target), trusted=trusted)
    assert options(target) & {"ro", "nosuid", "nodev"} == {"ro"} | expected
    with pytest.raises(OSError, match="Read-only"):
        (target / "a").write_text("2")
    (source / "a").write_text("3")
    assert (target / "a").read_text() == "3"


def test_trust_of_the_bind_is_independent_of_the_original(place: Path) -> None:
    source, first, second = directory(place / "source", a="1"), directory(place / "first"), directory(place / "second")
    bind(str(source), str(first), trusted=False)
    assert options(first) & {"ro", "nosuid", "nodev"} == {"nosuid", "nodev"}
    bind(str(first), str(second), trusted=True)
    assert not options(second) & {"ro", "nosuid", "nodev"}
    (second / "a").write_text("2")
    assert (source / "a").read_text() == "2"


def test_directory_over_itself(place: Path) -> None:
    source = directory(place / "source", a="1")
    bind_read_only(str(source), str(source), trusted=True)
    assert powerless("import os, sys; print(os.access(sys.argv[1], os.W_OK))", source / "a") == "False"
    unmount(str(source))
    (source / "a").write_text("2")


@pytest.mark.parametrize(("source", "target"), [("none", "there"), ("there", "none")])
def test_missing_directories_are_named(place: Path, source: str, target: str) -> None:
    directory(place / "there")
    before = mounts_of(place)
    with pytest.raises(NotFound, match=f"{place}/none: "):
        bind_read_only(str(place / source), str(place / target), trusted=True)
    assert mounts_of(place) == before
