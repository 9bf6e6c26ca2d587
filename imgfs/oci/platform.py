"""Platforms (image-spec, image-index.md) and the choice among them.

Variants are chosen as containerd does; another architecture that this machine could run as well (386 on amd64, arm on
arm64) is not: it has to be named.
"""

from __future__ import annotations

import platform as host_platform
import re
from collections.abc import Iterable
from dataclasses import dataclass

from imgfs.errors import Invalid, Malformed

_COMPONENT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*\Z")
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


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant ("" where there is none)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def slug(self) -> str:
        """The name of this platform as one path component: `linux-arm64-v8`."""
        return str(self).replace("/", "-")


def parse_platform(text: str) -> Platform:
    """Read `os/architecture[/variant]` (or with dashes); raises Invalid."""
    parts = re.split(r"/" if "/" in text else r"-", text)
    if not 2 <= len(parts) <= 3 or not all(_is_component(part) for part in parts):
        raise Invalid(f"platform {text[:80]!r}: expected os/architecture or os/architecture/variant")
    return Platform(*parts)


def checked_platform(os: str, architecture: str, variant: str) -> Platform:
    """A platform out of foreign JSON; raises Malformed where a part is no single path component."""
    for part in (os, architecture, variant or "v"):
        if not _is_component(part):
            raise Malformed(f"platform: {part[:80]!r} is not a name")
    return Platform(os, architecture, variant)


def local_platform() -> Platform:
    """The platform of this machine."""
    architecture, variant = _MACHINES.get(host_platform.machine(), (host_platform.machine(), ""))
    return Platform("linux", architecture, variant)


def choose(wanted: Platform, offered: Iterable[Platform | None]) -> int | None:
    """The index of the offered platform that suits `wanted` best, or None.

    Same os and architecture always; an exact (normalised) variant is best. Older variants of arm run on newer ones
    and are taken newest first, an x86-64 level above the wanted one never is.
    """
    best: tuple[int, int] | None = None
    for position, candidate in enumerate(offered):
        if candidate is None or (candidate.os, candidate.architecture) != (wanted.os, wanted.architecture):
            continue
        distance = _level(wanted) - _level(candidate)
        if distance >= 0 and (best is None or distance < best[0]):
            best = (distance, position)
    return None if best is None else best[1]


def _is_component(part: str) -> bool:
    return len(part) <= 64 and _COMPONENT.match(part) is not None and part not in {".", ".."}


def _level(platform: Platform) -> int:
    variant = platform.variant or _DEFAULT_VARIANT.get(platform.architecture, "v0")
    digits = re.match(r"v(\d{1,3})", variant)
    return int(digits[1]) if digits else 0
