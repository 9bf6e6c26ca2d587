"""`imgfs label` over a plain tree: what it shows, and what it asks of the directory."""

from __future__ import annotations

import json
import os

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])
DIGEST = Digest.of(b"blob")


@pytest.fixture
def tree(tree: PlainTree) -> PlainTree:
    (tree.path / "content").mkdir()
    for digest in (DIGEST, BOX.digest):
        (tree.path / "content" / digest).touch()
    os.setxattr(tree.path / "content" / DIGEST, "user.label.b", b"two\n\xff")
    os.setxattr(tree.path / "content" / DIGEST, "user.label.a", b"1")
    os.setxattr(tree.path / "content" / DIGEST, "user.imgfs.size", b"4")
    tree.add(BOX, "box")
    tree.add_snapshot("my site")
    return tree


def asked(tree: PlainTree, directory: str = "content") -> bytes:
    """The last change that was asked for."""
    return os.getxattr(tree.path / directory, "user.imgfs.label")


def test_labels_are_shown_sorted_and_on_one_line_each(run: Run, tree: PlainTree) -> None:
    assert run("label", DIGEST).stdout == "a=1\nb=two \\xff\n"
    assert json.loads(run("label", DIGEST, "--format", "json").stdout) == {"a": "1", "b": "two\n\\xff"}
    assert run("label", "box").stdout == ""


def test_changes_go_by_the_directory(run: Run, tree: PlainTree) -> None:
    assert run("label", "box", "a b=c d=e").exit_code == 0
    assert asked(tree) == f"{BOX.digest} a%20b=c d=e".encode()
    assert run("label", DIGEST, "a-").exit_code == 0
    assert asked(tree) == f"{DIGEST} a".encode()
    assert run("snapshot", "label", "my site", "k=v").exit_code == 0
    assert asked(tree, "snapshots") == b"my%20site k=v"


def test_nothing_is_changed_unless_all_changes_are_meant(run: Run, tree: PlainTree) -> None:
    done = run("label", DIGEST, "a=1", "b")
    assert (done.exit_code, "KEY-" in done.stderr) == (2, True)
    with pytest.raises(OSError):
        asked(tree)


def test_what_is_not_here_is_told(run: Run, tree: PlainTree) -> None:
    assert run("label", Digest.of(b"absent")).exit_code == 3
    assert run("label", "absent", "a=1").exit_code == 3
    assert run("snapshot", "label", "absent").exit_code == 3
