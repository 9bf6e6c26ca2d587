"""Repair findings: in this process if no daemon uses the state directory, otherwise through `.imgfs/repair`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgfs.check.examiner import Examiner
from imgfs.check.finding import Finding
from imgfs.check.repair import Repair, place_of
from imgfs.cli.failure import from_os_error
from imgfs.cli.store.scan_progress import Reading
from imgfs.cli.tree import Tree
from imgfs.errors import StateError
from imgfs.lock import locked

_REPAIR = "user.imgfs.repair"
_GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EINTR)


@dataclass(frozen=True, slots=True)
class Mended:
    """A finding and the repair. `done` is empty if the finding is left; `reason` says why."""

    finding: Finding
    done: str = ""
    reason: str = ""

    @property
    def is_left(self) -> bool:
        """Whether the finding still needs action, or its content is lost for now."""
        return self.finding.is_damage and (not self.done or bool(self.reason))

    def line(self) -> str:
        """Format it for people."""
        if not self.finding.is_damage:
            return f"note: {self.finding.line()}"
        if not self.done:
            return f"left: {self.finding.line()}" + (f" ({self.reason})" if self.reason else "")
        if self.reason:
            return (
                f"lost: {self.finding.path}: {self.finding.what}; {self.done}; cannot be fetched again: {self.reason}"
            )
        return f"mended: {self.finding.path}: {self.finding.what}; {self.done}"

    def told(self) -> dict[str, object]:
        """Format it for programs."""
        return told(self.finding) | {
            "mended": bool(self.done) and not self.reason,
            "done": self.done,
            "reason": self.reason,
        }


def told(finding: Finding) -> dict[str, object]:
    """Format a finding for programs."""
    return {
        "path": finding.path,
        "what": finding.what,
        "consequence": finding.consequence,
        "cure": finding.cure,
        "damage": finding.is_damage,
    }


def mending(state: Path, *, deep: bool, progress: Reading) -> Iterator[Mended]:
    """Repair each finding when it is found; skip what the disk refuses. Raises Busy if a daemon runs, NoSpace."""
    from imgfs.assembly.tables import TABLES

    with locked(state, "for repair"):
        mender = Repair(state, TABLES, progress.moved)
        with Examiner(state, TABLES.kept, deep=deep, moved=progress.moved) as examiner:
            progress.expect(examiner.size())
            for place in examiner.places():
                progress.at(place)
                if (finding := examiner.examine(place)) is not None:
                    yield _mended(mender, finding)


def _mended(mender: Repair, finding: Finding) -> Mended:
    try:
        return Mended(finding, mender.mend(finding))
    except StateError as error:
        return Mended(finding, "", error.message)


def mending_mounted(tree: Tree, found: Iterable[Finding]) -> Iterator[Mended]:
    """Let the daemon repair each finding; skip what it refuses, with its reason. Raises Failure if the daemon ends."""
    for finding in found:
        if finding.mend in ("none", "note"):
            yield Mended(finding)
        else:
            yield _ask(tree, finding)


def _ask(tree: Tree, finding: Finding) -> Mended:
    repair_file, place = f"{tree.path}/.imgfs/repair", place_of(finding)
    before = _report(repair_file)
    try:
        os.setxattr(repair_file, _REPAIR, os.fsencode(place))
    except OSError as error:
        if error.errno in _GONE:
            raise from_os_error(error, place, None, tree.log) from None
        return Mended(finding, "", tree.reason(repair_file) or os.strerror(error.errno or errno.EIO))
    after = _report(repair_file)
    if after == before:
        return Mended(finding, "is whole by now")
    said = json.loads(after[-1])
    return Mended(finding, said["done"], said["again"])


def _report(repair_file: str) -> list[bytes]:
    """Return the daemon's report of repairs, latest last."""
    with open(repair_file, "rb") as file:
        return file.readlines()
