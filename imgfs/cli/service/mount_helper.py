"""`mount.imgfs`: the helper that mount(8) runs for `mount -t imgfs` and for fstab. Install it with a link in /sbin.

mount(8), section "EXTERNAL HELPERS", specifies its arguments and exit codes.
"""

from __future__ import annotations

import errno
import getopt
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imgfs import __version__
from imgfs.cli.failure import Failure, from_error, printable
from imgfs.cli.service.mount_options import SPELLINGS, MountOptions, parse_options
from imgfs.errors import ImgfsError

USAGE = "mount.imgfs SOURCE DIR [-sfnv] [-o OPTIONS]"
_WHAT = (
    "Mount the tree of imgfs at DIR, as `mount -t imgfs SOURCE DIR` and fstab(5) request it. Returns when the tree "
    "answers; the daemon continues in the background and logs to the state directory."
)
_SOURCE = (
    "SOURCE can be any word; use `none`, because mount(8) treats other words as paths. The option `state` names the "
    "state directory. mount(8) searches its helpers in /sbin, so install a link there."
)
TEXT = (_WHAT, _SOURCE)
FLAGS = (
    ("-o OPTIONS", "A comma-separated list of options; see below."),
    ("-s", "Ignore unknown options."),
    ("-f", "Check the options and the configuration, but do not mount."),
    ("-v", "Print what is mounted."),
    ("-n, -t TYPE", "Ignored."),
)
EXITS = (
    ("0", "The tree is mounted."),
    ("1", "Wrong options, a wrong configuration, or no permission."),
    ("2", "The disk of the state directory failed or is full."),
    ("8", "Interrupted."),
    ("32", "The mount failed; the message gives the reason."),
)
EXAMPLE = "none /var/lib/imgfs imgfs _netdev,nofail,access=all 0 0"
_INTERRUPTED = 8
_CODES = {
    errno.EINVAL: 1,
    errno.EPERM: 1,
    errno.EACCES: 1,
    errno.EOPNOTSUPP: 1,
    errno.ENOSPC: 2,
    errno.EIO: 2,
    errno.EROFS: 2,
}
_FAILED = 32
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH if mount(8) runs the helper without one. Credential helpers are searched in it."""


def main() -> None:
    """Run as a program."""
    os.environ.setdefault("PATH", _PATH)
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def run(arguments: Sequence[str]) -> int:
    """Mount as `arguments` say. Returns mount(8)'s exit code; prints a failure on stderr."""
    try:
        return _run(arguments)
    except ImgfsError as error:
        return _fail(from_error(error))
    except Failure as failure:
        return _fail(failure)


def _run(arguments: Sequence[str]) -> int:
    try:
        flags, words = getopt.gnu_getopt(list(arguments), "sfnvho:t:N:V", ["help", "version"])
    except getopt.GetoptError as error:
        raise Failure(f"{error}; usage: {USAGE}", errno.EINVAL) from None
    given = dict(flags)
    if given.keys() & {"-h", "--help"}:
        print(_help())
        return 0
    if given.keys() & {"-V", "--version"}:
        print(f"mount.imgfs, version {__version__}")
        return 0
    if "-N" in given:
        raise Failure("-N: is not supported; run mount in that namespace, for example with `nsenter -m`", errno.EINVAL)
    if len(words) != 2:
        raise Failure(f"expected a source and a directory, got {len(words)} words; usage: {USAGE}", errno.EINVAL)
    source, directory = words
    options = parse_options((value for flag, value in flags if flag == "-o"), sloppy="-s" in given)
    _mount(source, directory, options, is_fake="-f" in given)
    if "-v" in given:
        print(f"mount.imgfs: {directory}")
    return 0


def _mount(source: str, directory: str, options: MountOptions, *, is_fake: bool) -> None:
    from imgfs.cli.service.starting import mounting_of, serve_behind

    mounting = mounting_of(Path(directory), options, foreground=False)
    if not is_fake:
        serve_behind(replace(mounting, source=source))


def _fail(failure: Failure) -> int:
    more = f"; for more see {failure.more}" if failure.more else ""
    print(f"mount.imgfs: {printable(failure.message + more)}", file=sys.stderr)
    return _CODES.get(failure.number, _FAILED)


def _help() -> str:
    tables = ("", "Flags:", *_rows(FLAGS), "", "Options:", *_rows(SPELLINGS), "", "Exit codes:", *_rows(EXITS))
    return "\n".join((f"Usage: {USAGE}", "", *TEXT, *tables, "", f"In fstab: {EXAMPLE}"))


def _rows(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(tag) for tag, _ in pairs)
    return [f"  {tag:{width}}  {text}" for tag, text in pairs]
