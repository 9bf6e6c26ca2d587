"""Platforms (image-spec, image-index.md), and the choice among those that an index offers.

The choice is that of containerd: the wanted platform first, then platforms that the same machine also runs, newest
variant first. These are older levels of x86-64, then 386; older variants of arm, also on arm64.
"""

from __future__ import annotations

import platform as host_platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imgfs.errors import Invalid, Malformed

_COMPONENT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*\Z")
_SYSTEM = re.compile(r"([^()]+)\(([^()+]*)((?:\+[^()+]+)*)\)\Z")
_TEXT = re.compile(r"([^()/]+(?:\([^()/]*\))?)/([^()/]+)(?:/([^()/]+))?\Z")
_SLUG = re.compile(r"([^()-]+(?:\([^()]*\))?)-([^()-]+)(?:-([^()-]+))?\Z")
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_ALSO = {"amd64": ("386", 0), "arm64": ("arm", 8)}
"""Other architectures that a machine runs, with the highest level of each."""
FEATURES_MAX = 16


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant ("" if there is none).

    `version` and `features` describe the operating system (`os.version`, `os.features`). Windows images have them.
    """

    os: str
    architecture: str
    variant: str = ""
    version: str = ""
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(part for part in (self._system, self.architecture, self.variant) if part)

    @property
    def slug(self) -> str:
        """The platform as one path component: `linux-arm64-v8`, `windows(10.0.17763.6414)-amd64`."""
        return "-".join(part for part in (self._system, self.architecture, self.variant) if part)

    @property
    def _system(self) -> str:
        """The operating system as containerd writes it: `windows(10.0.17763.6414+win32k)`."""
        detail = "+".join((self.version, *self.features))
        return f"{self.os}({detail})" if detail else self.os


def parse_platform(text: str) -> Platform:
    """Parse `os[(version[+feature...])]/architecture[/variant]`, or the same with dashes. Raises Invalid."""
    found = (_TEXT if "/" in text else _SLUG).match(text)
    if found is not None:
        system = _SYSTEM.match(found[1])
        os, version, features = (system[1], system[2], system[3].split("+")[1:]) if system else (found[1], "", [])
        parts = (os, found[2], found[3] or "v", version or "0", *features)
        if all(_is_component(part) for part in parts):
            return Platform(os, found[2], found[3] or "", version, tuple(features))
    raise Invalid(f"platform {text[:80]!r}: expected os/architecture or os/architecture/variant")


def checked_platform(
    os: str, architecture: str, variant: str, version: str = "", features: Sequence[str] = ()
) -> Platform:
    """Return a platform from foreign JSON. Raises Malformed if a part is not a single path component."""
    if len(features) > FEATURES_MAX:
        raise Malformed(f"platform: {len(features)} features of the operating system, the limit is {FEATURES_MAX}")
    for part in (os, architecture, variant or "v", version or "0", *features):
        if not _is_component(part):
            raise Malformed(f"platform: {part[:80]!r} is not a name")
    return Platform(os, architecture, variant, version, tuple(sorted(set(features))))


def local_platform() -> Platform:
    """Return the platform of this machine."""
    architecture, variant = _MACHINES.get(host_platform.machine(), (host_platform.machine(), ""))
    return Platform("linux", architecture, variant)


def choose(wanted: Platform, offered: Iterable[Platform | None]) -> int | None:
    """Return the index of the offered platform that suits `wanted` best; None if none does. The first of equals wins.

    An exact (normalised) variant is best, then older ones, newest first; a newer variant is never chosen. A wanted OS
    version matches all versions that begin with it, and the newest of them wins. Without a wanted version any version
    matches, and an entry without a version wins. An entry that needs an OS feature that is not wanted is never chosen.
    """
    ranked = [
        (rank, position)
        for position, candidate in enumerate(offered)
        if candidate is not None and (rank := _rank(wanted, candidate)) is not None
    ]
    return min(ranked)[1] if ranked else None


def _rank(wanted: Platform, candidate: Platform) -> tuple[int, int, int, tuple[int, ...]] | None:
    """Return how far `candidate` is from `wanted`, as a sort key; None if it does not run there.

    The architecture counts most, then the level, then missing features, then the version.
    """
    if candidate.os != wanted.os or not set(candidate.features) <= set(wanted.features):
        return None
    if wanted.version and not f"{candidate.version}.".startswith(f"{wanted.version}."):
        return None
    foreign, top = 0, _level(wanted)
    if candidate.architecture != wanted.architecture:
        also, limit = _ALSO.get(wanted.architecture, ("", 0))
        if candidate.architecture != also:
            return None
        foreign, top = 1, limit
    distance = top - _level(candidate)
    newest = tuple(-number for number in _numbers(candidate.version)) if wanted.version else (bool(candidate.version),)
    lacking = len(wanted.features) - len(candidate.features)
    return (foreign, distance, lacking, newest) if distance >= 0 else None


def _is_component(part: str) -> bool:
    return len(part) <= 64 and _COMPONENT.match(part) is not None and part not in {".", ".."}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isascii() and part.isdigit() else 0 for part in version.split("."))


def _level(platform: Platform) -> int:
    variant = platform.variant or _DEFAULT_VARIANT.get(platform.architecture, "v0")
    digits = re.match(r"v(\d{1,3})", variant)
    return int(digits[1]) if digits else 0
