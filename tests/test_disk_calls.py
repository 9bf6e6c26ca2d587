"""Code that changes names or sizes of files in the state directory calls Disk (imgfs/disk).

So the tests of crashes and power cuts see the change. The exceptions are listed here with their reasons.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "imgfs"

FUNCTIONS = {
    "os": {"rename", "replace", "unlink", "remove", "rmdir", "removedirs", "link", "symlink", "truncate", "ftruncate"},
    "shutil": {"rmtree", "move"},
}
METHODS = {"rename": 1, "replace": 1, "unlink": 0, "rmdir": 0, "hardlink_to": 1, "symlink_to": 1}
"""Methods of Path with their number of arguments, which distinguishes them from other methods of the same name."""

NOT_THE_STATE_DIRECTORY = {
    "cli/": "changes the mounted tree, or files of the user",
    "testing/": "changes the directories of tests",
    "archives/layout_directory": "writes an image layout that the user named",
}
EXCEPTIONS = {
    "check/repair": "deletes a directory that a durable rename has already removed; the next start sweeps the rest",
    "database/database": "the reserve file only occupies disk space; it has no content",
    "execution/containers": "deletes the output of a container that is being deleted, to free space for its record",
    "execution/control": "removes a socket that a killed process left",
    "execution/cgroups": "cgroups",
    "execution/records/records": "deletes a record that a durable rename has already removed; a later start sweeps it",
    "execution/removal": "a directory of the OCI runtime, and paths of the mounted tree",
    "execution/forkserver": "a socket",
    "execution/start": "a link in the mounted tree",
    "execution/supervisor/life": "the lock file names the holder; a crash releases the lock, so the text need not last",
    "execution/supervisor/server": "a socket",
    "execution/supervisor/streams": "a socket, and the log of a container; a power cut may lose the end of the log",
    "lock": "the lock file names the holder; a crash releases the lock, so the text need not last",
    "snapshots/directories": "deletes, by descriptor, a tree that a durable rename has already removed",
    "state": "an empty directory, to find out whether the filesystem is read-only",
}
"""Modules that change files without Disk, and why these changes need not be durable or recorded."""


def calls(source: str) -> Iterator[str]:
    """Yield the calls in `source` that change names or sizes of files without a Disk."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call | ast.Attribute):
            continue
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.attr in FUNCTIONS.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
            continue
        if not isinstance(node.func, ast.Attribute) or METHODS.get(node.func.attr) != len(node.args):
            continue
        receiver = ast.unparse(node.func.value)
        if receiver.rpartition(".")[2].lstrip("_") not in ("disk", "HOST", "os", "shutil", "structs"):
            yield f"{receiver}.{node.func.attr}"


def found() -> dict[str, list[str]]:
    """Return the calls outside imgfs/disk, by module."""
    modules = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {
        name: there
        for name, path in modules.items()
        if not name.startswith(("disk/", *NOT_THE_STATE_DIRECTORY)) and (there := list(calls(path.read_text())))
    }


def test_the_state_directory_is_changed_through_disk_or_for_a_listed_reason() -> None:
    assert {name: there for name, there in found().items() if name not in EXCEPTIONS} == {}


def test_every_listed_exception_exists() -> None:
    assert set(EXCEPTIONS) - set(found()) == set()


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("os.rename(a, b)", True),
        ("run_disk(os.unlink, path)", True),
        ("path.unlink(missing_ok=True)", True),
        ("(state / name).rename(other)", True),
        ("self._disk.rename(old, new)", False),
        ("disk.rmdir(path)", False),
        ("HOST.unlink(path)", False),
        ("text.replace('a', 'b')", False),
        ("names.rename(before, after)", False),
    ],
)
def test_only_calls_that_bypass_disk_are_found(source: str, *, is_found: bool) -> None:
    assert bool(list(calls(source))) is is_found
