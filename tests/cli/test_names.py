"""`imgfs tag` and `imgfs rm` over a plain tree."""

from __future__ import annotations

import os

import pytest

from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])


@pytest.mark.parametrize(
    ("name", "written"),
    [("mytool", b"mytool"), ("quay.io/x/y:1", b"quay.io/x/y:1"), ("x/y", b"docker.io/x/y:latest")],
)
def test_tag_writes_the_full_name_and_the_digest(run: Run, tree: PlainTree, name: str, written: bytes) -> None:
    tree.add(BOX, "box")
    done = run("tag", "box", name)
    assert done.exit_code == 0, done.stderr
    assert not done.stdout
    assert os.getxattr(tree.images, "user.imgfs.tag") == written + b" " + BOX.digest.encode()


@pytest.mark.parametrize("name", ["x/Y", BOX.digest, "sha256:12", ""])
def test_tag_refuses_what_is_no_name(run: Run, tree: PlainTree, name: str) -> None:
    tree.add(BOX, "box")
    assert run("tag", "box", name).exit_code == 2


def test_tag_of_a_digest_nobody_has_seen_is_registered(run: Run, tree: PlainTree) -> None:
    unseen = f"sha256:{'0' * 64}"
    assert run("tag", unseen, "mytool").exit_code == 0
    assert os.getxattr(tree.images, "user.imgfs.tag") == f"mytool {unseen}".encode()


def test_rm_removes_names_and_nothing_else(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box", "docker.io/library/box:latest", "docker.io/x/box:1")
    done = run("rm", "box", "x/box:1")
    assert done.exit_code == 0, done.stderr
    assert not done.stdout
    assert run("ls", "-q").stdout == "docker.io/library/box:latest\n"
    assert (tree.images / BOX.digest).is_dir()


def test_rm_goes_on_after_a_failure_and_exits_with_the_first(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    done = run("rm", "-q", "no/such:1", "x/Y", BOX.digest, "box")
    assert done.exit_code == 3
    assert done.stderr.count("imgfs: ") == 3
    assert "docker.io/no/such:1: is not registered" in done.stderr
    assert run("ls", "-q").stdout == ""


def test_rm_does_not_remove_a_directory_of_names(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "quay.io/x/y:1")
    assert run("rm", "quay.io").exit_code == 3
    assert run("ls", "-q").stdout == "quay.io/x/y:1\n"
