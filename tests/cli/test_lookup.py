"""What people type for an image, and what it stands for."""

from __future__ import annotations

import pytest

from imgfs.cli.failure import Failure
from imgfs.cli.images.lookup import find, find_registered, full_name, new_name
from imgfs.cli.tree import Tree
from imgfs.testing.images import File, image, layer
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])
OTHER = image([layer([File("f", b"y")])])


@pytest.fixture
def opened(tree: PlainTree) -> Tree:
    tree.add(BOX, "mytool", "docker.io/library/alpine:3.20")
    return Tree.open(str(tree.path))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mytool", "mytool"),
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("user/app:1", "docker.io/user/app:1"),
        ("quay.io/x/y", "quay.io/x/y:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
    ],
)
def test_a_registered_local_name_wins_over_a_familiar_one(opened: Tree, text: str, name: str) -> None:
    assert full_name(opened, text) == name


def test_what_a_familiar_name_stands_for_is_said_on_stderr_only(
    opened: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    full_name(opened, "alpine:3.20")
    captured = capsys.readouterr()
    assert captured.err == "imgfs: alpine:3.20 stands for docker.io/library/alpine:3.20\n"
    assert not captured.out


def test_nothing_is_said_of_full_and_local_names_nor_when_quiet(
    opened: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    full_name(opened, "docker.io/library/alpine:3.20")
    full_name(opened, "mytool")
    full_name(opened, "alpine", quiet=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [("word", "word"), ("word:v1", "word:v1"), ("a:3", "docker.io/library/a:3"), ("a/b", "docker.io/a/b:latest")],
)
def test_a_new_word_stays_local_and_the_rest_is_completed(text: str, name: str) -> None:
    assert new_name(text) == name


@pytest.mark.parametrize("text", ["mytool", "alpine:3.20", BOX.digest, BOX.digest[:19]])
def test_name_familiar_name_digest_and_its_beginning_lead_to_the_image(opened: Tree, text: str) -> None:
    assert find(opened, text).digest == BOX.digest
    assert find_registered(opened, text).digest == BOX.digest


def test_unknown_digest_is_not_found(opened: Tree) -> None:
    with pytest.raises(Failure, match="is unknown") as caught:
        find(opened, OTHER.digest)
    assert caught.value.exit_code == 3


def test_beginning_of_no_digest_is_not_found(opened: Tree) -> None:
    with pytest.raises(Failure, match="with this prefix") as caught:
        find(opened, OTHER.digest[:19])
    assert caught.value.exit_code == 3


def test_beginning_of_two_digests_is_refused(opened: Tree, tree: PlainTree) -> None:
    tree.add(OTHER, "other")
    with pytest.raises(Failure, match="2 digests") as caught:
        find(opened, "sha256:")
    assert caught.value.exit_code == 2


def test_unregistered_name_is_not_found_where_no_registry_may_be_asked(opened: Tree) -> None:
    with pytest.raises(Failure, match="is not registered") as caught:
        find_registered(opened, "quay.io/x/y:1")
    assert caught.value.exit_code == 3


def test_failed_lookup_has_the_reason_of_the_host(opened: Tree, tree: PlainTree) -> None:
    tree.complain("docker.io", "docker.io/library/nope:1: registry answered 404")
    with pytest.raises(Failure, match="answered 404") as caught:
        find(opened, "nope:1")
    assert caught.value.exit_code == 3
    assert caught.value.more == f"{tree.path}/.imgfs/log"


def test_absence_is_not_explained_by_the_failure_of_another_name(opened: Tree, tree: PlainTree) -> None:
    tree.complain("docker.io", "docker.io/library/other:1: registry answered 404")
    with pytest.raises(Failure, match="nope:1: not found, and no registry was asked"):
        find(opened, "nope:1")


def test_refresh_touches_the_name_and_not_what_it_leads_to(opened: Tree, tree: PlainTree) -> None:
    link = tree.images / "mytool"
    before, behind = link.lstat().st_mtime_ns, link.stat().st_mtime_ns
    find(opened, "mytool", refresh=True)
    assert link.lstat().st_mtime_ns > before
    assert link.stat().st_mtime_ns == behind


def test_tree_whose_json_is_none_fails_verification(opened: Tree, tree: PlainTree) -> None:
    (tree.images / BOX.digest / "status.json").write_bytes(b"{")
    with pytest.raises(Failure, match="is not JSON") as caught:
        opened.status(BOX.digest)
    assert caught.value.exit_code == 6
