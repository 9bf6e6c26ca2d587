"""Any changes in a real overlay over any parent: the exported layers merge to the tree that the kernel shows."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import Ignore, compare_trees, snapshot_tree

from .overlays import Overlay, exported, make_overlay, merged_tree, mounted_overlay

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "mkdir", "remove", "rename", "link", "symlink", "chmod", "setxattr"]), PATHS, PATHS
    ),
    max_size=14,
)
LINKS = Ignore("links", "overlay without an index breaks hard links of lower files when it copies one up")


def do(root: Path, what: str, path: str, other: str) -> None:
    """Do one step. A step that the kernel refuses changes nothing."""
    here, there = root / path, root / other
    try:
        if not resolves_inside(root, here) or not resolves_inside(root, there):
            return
        if what == "write":
            here.write_text(f"{path} {other}")
        elif what == "mkdir":
            here.mkdir()
        elif what == "remove":
            shutil.rmtree(here) if here.is_dir() and not here.is_symlink() else here.unlink()
        elif what == "rename":
            os.rename(here, there)
        elif what == "link":
            os.link(here, there, follow_symlinks=False)
        elif what == "symlink":
            here.symlink_to(other)
        elif what == "chmod":
            here.chmod(0o700 if here.is_dir() else 0o640)
        else:
            os.setxattr(here, "user.k", other.encode())
    except OSError:
        return


def resolves_inside(root: Path, path: Path) -> bool:
    """Return whether the parent of `path` is inside the rootfs. Links in these tests are relative and may leave it."""
    return Path(os.path.realpath(path.parent)).is_relative_to(root)


@settings(max_examples=60)
@given(st.lists(STEPS, min_size=2, max_size=3))
def test_any_changes_merge_to_the_tree_of_the_kernel(levels: list[list[tuple[str, str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        below = Path(scratch, "empty")
        below.mkdir()
        lowers, tars = [below], [exported(below)]
        for number, steps in enumerate(levels):
            made = make_overlay(Path(scratch, str(number)))
            overlay = Overlay(Path(":".join(map(str, lowers))), made.upper, made.work, made.rootfs)
            with mounted_overlay(overlay) as rootfs:
                for step in steps:
                    do(rootfs, *step)
                expected = snapshot_tree(rootfs)
            tars.append(exported(made.upper))
            lowers.insert(0, made.upper)
            assert compare_trees(expected, merged_tree(tars), [LINKS]) == []
