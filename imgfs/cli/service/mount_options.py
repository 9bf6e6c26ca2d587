"""What `-o` may say, of `imgfs mount` and of `mount -t imgfs` alike: mount(8)'s own words, and every option of imgfs.

mount(8) hands on all that stands in fstab, also what is meant for itself or for systemd; that is passed over here.
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
    ("state=DIR", "Where content is kept; the same as --state."),
    ("config=FILE", "The configuration file; the same as --config."),
    ("NAME=VALUE", "Any option of imgfs.toml(5) but tables. Lists may be named several times."),
    ("allow_other", "The same as access=all."),
    ("ro", "Nobody changes anything through the tree; what is read still comes in."),
    ("nosuid, nodev", "Setuid bits and device nodes of images are off; the same as --nosuid."),
)
"""What counts, for help and manual. A comma in a value is written between double quotes: `auth_file="/a,b"`."""
_PASSED_OVER = frozenset(
    (
        *("async", "atime", "auto", "default_permissions", "defaults", "diratime", "dirsync", "group"),
        *("iversion", "lazytime", "loud", "mand", "noatime", "noauto", "nodiratime", "nofail", "noiversion"),
        *("nolazytime", "nomand", "norelatime", "nostrictatime", "nouser", "owner", "relatime", "silent"),
        *("strictatime", "sync", "user", "users", "_netdev"),
    )
)
"""Flags that mean something to others, or what holds anyway."""
_PASSED_OVER_WITH_VALUE = ("x-", "X-", "comment=", "user=", "fsname=", "subtype=", "user_id=", "group_id=")
_REFUSED = {
    "noexec": "a rootfs is a mount of its own that it would not reach; leave it out, or write `exec` behind `user`",
    "remount": "a mounted tree keeps its options; unmount it and mount it again",
}
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
_FLAGS = frozenset((*_OPPOSITES.values(), "remount"))
_UNQUOTED_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*\Z)')


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What was asked for; `given` are options of imgfs.toml, as they were written."""

    state: Path | None = None
    config: Path | None = None
    given: tuple[tuple[str, str], ...] = ()
    is_read_only: bool = False
    nosuid: bool = False


def parse_options(texts: Iterable[str], *, sloppy: bool = False) -> MountOptions:
    """Read lists with commas between their options; of what contradicts, the last counts.

    `sloppy` passes unknown ones over, as `mount -s` wants it. Raises Invalid, with the likely spelling, and Unsupported
    for what mount(8) knows and imgfs does not offer.
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
    """What an option may begin with, for completion: with `=` where a value follows."""
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
    advice = hint(name, known, "mount.imgfs(8) and imgfs.toml(5) tell which there are")
    raise Invalid(f"mount option {name[:80]!r}: is unknown, or has no value where it needs one; {advice}")
