"""Parse the options after `-o` of `imgfs mount` and `mount -t imgfs`: mount(8)'s words and every option of imgfs.

mount(8) passes on all options of a line in fstab, including those for itself or for systemd; the parser ignores these.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imgfs.errors import Invalid, Unsupported
from imgfs.spelling import hint

SPELLINGS = (
    ("state=DIR", "The state directory; the same as --state."),
    ("config=FILE", "The configuration file; the same as --config."),
    ("NAME=VALUE", "An option of imgfs.toml(5) except tables. Repeat it for several items of a list."),
    ("allow_other", "The same as access=all."),
    ("ro", "The tree cannot be changed; reading still fetches what is not local."),
    ("nosuid, nodev", "Ignore setuid bits and device nodes of images; the same as --nosuid."),
)
"""The options, for help and manual. A value with a comma is written in double quotes: `auth_file="/a,b"`."""
_PASSED_OVER = frozenset(
    (
        *("async", "atime", "auto", "default_permissions", "defaults", "diratime", "dirsync", "group"),
        *("iversion", "lazytime", "loud", "mand", "noatime", "noauto", "nodiratime", "nofail", "noiversion"),
        *("nolazytime", "nomand", "norelatime", "nostrictatime", "nouser", "owner", "relatime", "silent"),
        *("strictatime", "sync", "user", "users", "_netdev"),
    )
)
"""Flags that are ignored: they are for mount(8) or systemd, or they describe the default."""
_PASSED_OVER_WITH_VALUE = ("x-", "X-", "comment=", "user=", "fsname=", "subtype=", "user_id=", "group_id=")
_REFUSED = {
    "noexec": "it would not apply to a rootfs, which is a separate mount; omit it, or write `exec` after `user`",
    "remount": "a mounted tree keeps its options; unmount it and mount it again",
}
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
_FLAGS = frozenset((*_OPPOSITES.values(), "remount"))
_UNQUOTED_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*\Z)')


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Parsed options. `given` are options of imgfs.toml as text."""

    state: Path | None = None
    config: Path | None = None
    given: tuple[tuple[str, str], ...] = ()
    is_read_only: bool = False
    nosuid: bool = False


def parse_options(texts: Iterable[str], *, sloppy: bool = False) -> MountOptions:
    """Parse comma-separated lists of options. Of contradicting options the last one wins.

    `sloppy` ignores unknown options, as `mount -s` does. Raises Invalid, with the likely spelling, for an unknown
    option, and Unsupported for an option of mount(8) that imgfs does not support.
    """
    options, flags = MountOptions(), set[str]()
    for word in (word for text in texts for word in _UNQUOTED_COMMA.split(text)):
        name, equals, value = word.partition("=")
        value = value.replace('"', "")
        if word in _FLAGS:
            flags.add(word)
        elif word in _OPPOSITES:
            flags.discard(_OPPOSITES[word])
        elif word and word not in _PASSED_OVER and not word.startswith(_PASSED_OVER_WITH_VALUE):
            options = _with(options, name, value if equals else None, sloppy=sloppy)
    for name, reason in _REFUSED.items():
        if name in flags:
            raise Unsupported(f"mount option {name}: {reason}")
    return replace(options, is_read_only="ro" in flags, nosuid=not flags.isdisjoint({"nosuid", "nodev"}))


def option_names() -> Iterator[str]:
    """Yield option names for completion, with `=` if a value follows."""
    from imgfs.config.options import table

    yield from ("allow_other", "ro", "nosuid", "nodev", "state=", "config=")
    yield from (f"{name}=" for name, option in table().items() if not option.is_table)


def _with(options: MountOptions, name: str, value: str | None, *, sloppy: bool) -> MountOptions:
    from imgfs.config.options import table

    if name == "allow_other" and value is None:
        return replace(options, given=(*options.given, ("access", "all")))
    if name in ("state", "config") and value:
        return replace(options, **{name: Path(os.path.abspath(value))})
    if name in table() and not table()[name].is_table:
        if value is None:
            raise Invalid(f"mount option {name}: has no value; write {name}=VALUE, {table()[name].expected}")
        return replace(options, given=(*options.given, (name, value)))
    if sloppy:
        return options
    known = [*(one.rstrip("=") for one in option_names()), *sorted({*_PASSED_OVER, *_OPPOSITES})]
    advice = hint(name, known, "mount.imgfs(8) and imgfs.toml(5) list the options")
    raise Invalid(f"mount option {name[:80]!r}: is unknown, or its value is missing; {advice}")
