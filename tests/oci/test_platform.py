"""Platforms: parsing them, and the choice among those that an index offers."""

from __future__ import annotations

import platform as host_platform

import pytest

from imgfs.errors import Invalid, Malformed
from imgfs.oci.platform import Platform, checked_platform, choose, local_platform, parse_platform


def offered(*texts: str) -> list[Platform | None]:
    return [parse_platform(text) if text else None for text in texts]


@pytest.mark.parametrize(
    ("wanted", "offers", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386", "linux/amd64/v2"], 0),
        ("linux/386", ["linux/amd64"], None),
        ("linux/amd64", [], None),
        ("linux/amd64", ["", "unknown/unknown"], None),
        ("linux/amd64", ["", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v3"], None),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v1"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3", "linux/amd64/v2"], 1),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm64", ["linux/arm64/v9"], None),
        ("linux/arm64/v9", ["linux/arm64/v8"], 0),
        ("linux/arm64", ["linux/arm/v7"], 0),
        ("linux/arm64", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8", "linux/arm/v7"], 2),
        ("linux/arm64", ["linux/arm/v8", "linux/arm64"], 1),
        ("linux/arm/v8", ["linux/arm64", "linux/arm/v6", "linux/arm/v7"], 2),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm/v5", ["linux/arm/v6", "linux/arm/v7"], None),
        ("linux/riscv64", ["linux/riscv64"], 0),
        ("linux/s390x", ["linux/ppc64le", "linux/s390x"], 1),
        ("windows/amd64", ["windows(10.0.17763.1)/amd64", "windows(10.0.20348.1)/amd64"], 0),
        ("windows/amd64", ["windows(10.0.17763.1)/amd64", "windows/amd64"], 1),
        ("windows(10.0.20348)/amd64", ["windows(10.0.17763.1)/amd64", "windows(10.0.20348.1)/amd64"], 1),
        ("windows(10.0.17763)/amd64", ["windows(10.0.17763.99)/amd64", "windows(10.0.17763.100)/amd64"], 1),
        ("windows(10.0.1776)/amd64", ["windows(10.0.17763.1)/amd64"], None),
        ("windows(10.0.20348)/amd64", ["windows/amd64", "linux/amd64"], None),
        ("windows(10.0.17763.1)/amd64", ["windows(10.0.17763.1+win32k)/amd64"], None),
        ("windows(+win32k)/amd64", ["windows(10.0.1)/amd64", "windows(10.0.1+win32k)/amd64"], 1),
        ("windows(10.0.1+win32k)/amd64", ["windows(10.0.1)/amd64"], 0),
    ],
)
def test_the_best_that_runs_is_chosen(wanted: str, offers: list[str], chosen: int | None) -> None:
    assert choose(parse_platform(wanted), offered(*offers)) == chosen


@pytest.mark.parametrize(
    "text", ["linux/amd64", "linux/arm/v7", "freebsd/amd64", "windows(10.0.17763.1)/amd64", "windows(1-rc+a+b)/arm/v7"]
)
def test_a_platform_is_written_as_it_is_read_also_as_a_path_component(text: str) -> None:
    platform = parse_platform(text)
    assert str(platform) == text
    assert parse_platform(platform.slug) == platform
    assert "/" not in platform.slug


@pytest.mark.parametrize(
    "text",
    ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/amd64\n", "l\0/a", "w(1/a", "w()/", "w(1)"],
)
def test_malformed_platforms_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="expected os/architecture"):
        parse_platform(text)


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "a\0", "a b", "a\n", "x" * 65, "é"])
def test_foreign_parts_are_single_path_components(part: str) -> None:
    for parts in ((part, "amd64", ""), ("linux", part, ""), *([("linux", "arm", part)] if part else [])):
        with pytest.raises(Malformed):
            checked_platform(*parts)
    assert checked_platform("linux", "arm", "v7") == Platform("linux", "arm", "v7")


@pytest.mark.parametrize(
    ("machine", "platform"),
    [
        ("x86_64", Platform("linux", "amd64")),
        ("aarch64", Platform("linux", "arm64")),
        ("armv7l", Platform("linux", "arm", "v7")),
        ("i686", Platform("linux", "386")),
        ("sparc64", Platform("linux", "sparc64")),
    ],
)
def test_the_local_platform_uses_the_names_of_images(
    monkeypatch: pytest.MonkeyPatch, machine: str, platform: Platform
) -> None:
    monkeypatch.setattr(host_platform, "machine", lambda: machine)
    assert local_platform() == platform


def test_two_os_versions_are_two_platforms() -> None:
    texts = ["windows(10.0.17763.1)/amd64", "windows(10.0.20348.1)/amd64", "windows(10.0.20348.1+win32k)/amd64"]
    assert len({parse_platform(text).slug for text in texts}) == 3
    for part in ("", "a/b", "a b", "a(b)", "1+2"):
        with pytest.raises(Malformed):
            checked_platform("windows", "amd64", "", "10", (part,))
