"""`imgfs snapshot` over a plain tree: what it says, what it touches, and what it takes back."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from imgfs.cli.progress import byte_progress
from imgfs.cli.table import local_time
from imgfs.filename import without_colons
from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])
MOMENT = 1_700_000_000
LAYER = os.urandom(3_000_000)


def box(tree: PlainTree, *names: str) -> str:
    """An image with a chain; the chain ID."""
    return tree.add_chain(BOX, tree.add(BOX, *(names or ("box",))))


def test_empty_tree_is_a_head_and_an_empty_array(run: Run) -> None:
    assert run("snapshot", "ls").stdout.split() == ["ID", "KIND", "PARENT", "CREATED", "USAGE", "CHILDREN"]
    assert json.loads(run("snapshot", "ls", "--format", "json").stdout) == []
    assert run("snapshot", "ls", "-q").stdout == ""


def test_json_has_stable_keys_of_all_three_kinds(run: Run, tree: PlainTree) -> None:
    chain = box(tree)
    tree.add_snapshot("site", chain, usage=7, children=["active/k", "v"])
    tree.add_snapshot("active/k", "site", usage=9)
    (tree.snapshots / "v").symlink_to("site")
    os.utime(tree.snapshots / "v", (MOMENT, MOMENT), follow_symlinks=False)
    created = "2023-11-14T22:13:20Z"
    assert json.loads(run("snapshot", "ls", "--format", "json").stdout) == [
        {"id": "active/k", "kind": "active", "parent": "site", "usage": 9, "created": created, "children": []},
        {
            "id": "site",
            "kind": "committed",
            "parent": chain,
            "usage": 7,
            "created": created,
            "children": ["active/k", "v"],
        },
        {"id": "v", "kind": "view", "parent": "site", "usage": 0, "created": created, "children": []},
    ]


def test_table_counts_children_and_shortens_chain_ids(run: Run, tree: PlainTree) -> None:
    chain = box(tree)
    tree.add_snapshot("site", chain, usage=7, children=["active/k", "v"])
    [line] = run("snapshot", "ls").stdout.splitlines()[1:]
    assert line.split() == ["site", "committed", chain[:19], *local_time(MOMENT * 10**9).split(), "7", "B", "2"]


def test_chains_of_images_are_listed_when_asked_for(run: Run, tree: PlainTree) -> None:
    chain = box(tree)
    tree.add_snapshot("site")
    assert run("snapshot", "ls", "-q").stdout.split() == ["site"]
    assert run("snapshot", "ls", "-aq").stdout.split() == ["site", chain]


def test_snapshot_that_goes_meanwhile_is_left_out(run: Run, tree: PlainTree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.add_snapshot("going")
    tree.add_snapshot("site")

    def ask(path: str, name: str, real: object = os.getxattr) -> bytes:
        if path.endswith("going"):
            raise FileNotFoundError(errno.ENOENT, "gone", path)
        assert callable(real)
        return real(path, name)

    monkeypatch.setattr(os, "getxattr", ask)
    assert [row["id"] for row in json.loads(run("snapshot", "ls", "--format", "json").stdout)] == ["site"]


@pytest.mark.parametrize("key", ["k", "active/k"])
def test_prepare_makes_a_key_and_prints_where_its_files_are(run: Run, tree: PlainTree, key: str) -> None:
    done = run("snapshot", "prepare", key)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{tree.snapshots}/active/k/rootfs\n", "")
    assert os.listdir(tree.snapshots / "active/k") == []


def test_prepare_puts_it_upon_a_snapshot(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("site")
    assert run("snapshot", "prepare", "k", "site").exit_code == 0
    assert os.readlink(tree.snapshots / "active/k/parent") == "../../site"


@pytest.mark.parametrize("length", [7, 8 + 11, 71], ids=["the algorithm", "a table's digest", "all of it"])
def test_prepare_takes_a_chain_id_and_its_beginning(run: Run, tree: PlainTree, length: int) -> None:
    chain = box(tree)
    assert run("snapshot", "prepare", "k", chain[:length]).exit_code == 0
    assert os.readlink(tree.snapshots / "active/k/parent") == f"../../{chain}"


def test_prepare_takes_an_image_by_name_and_by_digest(run: Run, tree: PlainTree) -> None:
    chain = box(tree, "docker.io/library/box:latest")
    for key, typed in (("name", "box"), ("digest", BOX.digest), ("short", BOX.digest[:19])):
        assert run("snapshot", "prepare", "-q", key, typed).exit_code == 0
        assert os.readlink(tree.snapshots / "active" / key / "parent") == f"../../{chain}"


def test_snapshot_wins_over_an_image_of_its_name(run: Run, tree: PlainTree) -> None:
    box(tree)
    tree.add_snapshot("box")
    assert run("snapshot", "prepare", "k", "box").exit_code == 0
    assert os.readlink(tree.snapshots / "active/k/parent") == "../../box"


def test_taken_key_is_1_and_says_how_to_free_it(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("active/k")
    done = run("snapshot", "prepare", "k")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "`imgfs snapshot rm active/k`" in done.stderr


@pytest.mark.parametrize(("raised", "code"), [(OSError(errno.EBUSY, "busy"), 7), (KeyboardInterrupt(), 130)])
def test_prepare_that_cannot_set_the_parent_leaves_no_key(
    run: Run, tree: PlainTree, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    tree.add_snapshot("site")

    def refuse(target: str, place: str) -> None:
        os.setxattr(os.path.dirname(place), "user.imgfs.error", b"snapshot active/k: the daemon's word")
        raise raised

    monkeypatch.setattr(os, "symlink", refuse)
    done = run("snapshot", "prepare", "k", "site")
    assert (done.exit_code, done.stdout) == (code, "")
    assert code == 130 or "the daemon's word" in done.stderr
    assert os.listdir(tree.snapshots / "active") == []


def test_image_that_does_not_come_leaves_no_key(run: Run, tree: PlainTree) -> None:
    digest = tree.add(BOX, "box")
    tree.complain(digest, "layer sha256:1: got 2, expected 1")
    done = run("snapshot", "prepare", "k", "box")
    assert done.exit_code == 3
    assert "got 2, expected 1" in done.stderr
    assert os.listdir(tree.snapshots / "active") == []


def test_active_snapshot_is_no_parent(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("active/k")
    done = run("snapshot", "prepare", "l", "active/k")
    assert done.exit_code == 2
    assert "commit it before it is a parent" in done.stderr


def test_view_is_a_link_and_its_path_is_printed(run: Run, tree: PlainTree) -> None:
    chain = box(tree)
    done = run("snapshot", "view", "v", "box")
    assert (done.exit_code, done.stdout) == (0, f"{tree.snapshots}/v/rootfs\n")
    assert os.readlink(tree.snapshots / "v") == chain


def test_commit_moves_a_key_to_a_name(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("active/k")
    done = run("snapshot", "commit", "k", "site")
    assert (done.exit_code, done.output) == (0, "")
    assert sorted(os.listdir(tree.snapshots)) == ["active", "site"]


@pytest.mark.parametrize("kind", ["committed", "view"])
def test_taken_name_is_1_whatever_has_it(run: Run, tree: PlainTree, kind: str) -> None:
    tree.add_snapshot("active/k")
    tree.add_snapshot("other")
    if kind == "view":
        (tree.snapshots / "site").symlink_to("other")
    else:
        tree.add_snapshot("site")
    for arguments in (("commit", "k", "site"), ("view", "site", "other")):
        done = run("snapshot", *arguments)
        assert done.exit_code == 1
        assert "snapshot site: exists already" in done.stderr
    assert (tree.snapshots / "active/k").is_dir()


def test_refused_commit_has_the_daemons_sentence(run: Run, tree: PlainTree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.complain_at(tree.add_snapshot("active/k"), "snapshot active/k: is in use")

    def refuse(old: str, new: str) -> None:
        raise OSError(errno.EBUSY, "busy", old)

    monkeypatch.setattr(os, "rename", refuse)
    done = run("snapshot", "commit", "k", "site")
    assert done.exit_code == 7
    assert done.stderr.startswith("imgfs: snapshot active/k: is in use\n")
    assert f"{tree.path}/.imgfs/log" in done.stderr


def test_rm_takes_what_it_can_and_reports_the_rest(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("site")
    tree.add_snapshot("active/k")
    (tree.snapshots / "v").symlink_to("site")
    done = run("snapshot", "rm", "active/k", "nope", "v")
    assert done.exit_code == 3
    assert "snapshot nope: does not exist" in done.stderr
    assert sorted(os.listdir(tree.snapshots)) == ["active", "site"]
    assert os.listdir(tree.snapshots / "active") == []


@pytest.mark.parametrize("id", ["../images", "active", ".", "..", "", "active/..", "active/k/parent", "/etc", "site/"])
def test_what_is_no_id_touches_nothing(run: Run, tree: PlainTree, id: str) -> None:
    tree.add_snapshot("site")
    tree.add_snapshot("active/k", "site")
    assert run("snapshot", "rm", id).exit_code == 3
    assert sorted(os.listdir(tree.snapshots)) == ["active", "site"]
    assert (tree.snapshots / "active/k/parent").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("prepare", "a/b"), "snapshot key 'a/b'"),
        (("prepare", ".."), "snapshot key '..'"),
        (("view", "a/b", "site"), "snapshot name 'a/b'"),
        (("view", "active", "site"), "is the directory of active snapshots"),
        (("commit", "k", f"sha256:{'0' * 64}"), "digests name the snapshots of images"),
        (("prepare", "k", "active/k"), "is active; commit it before it is a parent"),
    ],
)
def test_wrong_names_are_2(run: Run, tree: PlainTree, arguments: tuple[str, ...], sentence: str) -> None:
    tree.add_snapshot("site")
    tree.add_snapshot("active/k")
    done = run("snapshot", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_key_for_an_id_is_not_found_and_the_id_is_suggested(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("active/k")
    done = run("snapshot", "rm", "k")
    assert done.exit_code == 3
    assert "did you mean active/k?" in done.stderr
    assert (tree.snapshots / "active/k").is_dir()


def test_beginning_of_several_chain_ids_is_2(run: Run, tree: PlainTree) -> None:
    for digit in "01":
        tree.add_snapshot(f"sha256:a{digit * 63}")
    assert run("snapshot", "path", "sha256:a").exit_code == 2
    assert run("snapshot", "path", "sha256:a0").exit_code == 0
    assert run("snapshot", "path", "sha256:b").exit_code == 3


def test_path_is_printed_and_not_walked(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("active/k")
    assert run("snapshot", "path", "active/k").stdout == f"{tree.snapshots}/active/k/rootfs\n"


def test_path_takes_the_digest_of_a_known_image(run: Run, tree: PlainTree) -> None:
    chain = box(tree)
    assert run("snapshot", "path", BOX.digest).stdout == f"{tree.snapshots}/{without_colons(chain)}/rootfs\n"
    assert run("snapshot", "path", f"sha256:{'0' * 64}").exit_code == 3


def exported(tree: PlainTree) -> str:
    """A snapshot with a layer; its digest."""
    (tree.add_snapshot("site") / "layer.tar").write_bytes(LAYER)
    return f"sha256:{hashlib.sha256(LAYER).hexdigest()}"


def test_export_goes_to_stdout_and_nothing_else_does(run: Run, tree: PlainTree) -> None:
    exported(tree)
    done = run("snapshot", "export", "site")
    assert (done.exit_code, done.stdout_bytes, done.stderr) == (0, LAYER, "")


def test_export_to_a_file_prints_the_digest(run: Run, tree: PlainTree, tmp_path: Path) -> None:
    digest = exported(tree)
    (tmp_path / "layer").write_text("before")
    done = run("snapshot", "export", "site", "-o", str(tmp_path / "layer"))
    assert (done.exit_code, done.stdout) == (0, f"{digest}\n")
    assert (tmp_path / "layer").read_bytes() == LAYER
    assert sorted(os.listdir(tmp_path)) == ["layer", "tree"]


def test_export_writes_through_links_and_into_what_is_no_regular_file(
    run: Run, tree: PlainTree, tmp_path: Path
) -> None:
    digest = exported(tree)
    (tmp_path / "link").symlink_to("layer")
    assert run("snapshot", "export", "site", "-o", str(tmp_path / "link")).stdout == f"{digest}\n"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "layer").read_bytes() == LAYER
    assert run("snapshot", "export", "site", "-o", "/dev/null").stdout == f"{digest}\n"
    assert Path("/dev/null").is_char_device()


def test_export_that_fails_leaves_the_file_as_it_was(
    run: Run, tree: PlainTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tree)
    (tmp_path / "layer").write_text("before")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    done = run("snapshot", "export", "site", "-o", str(tmp_path / "layer"))
    assert (done.exit_code, done.stdout) == (8, "")
    assert f"{tmp_path}/layer: No space left on device" in done.stderr
    assert (tmp_path / "layer").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["layer", "tree"]


def test_full_device_and_missing_directory_are_told_by_their_path(run: Run, tree: PlainTree, tmp_path: Path) -> None:
    exported(tree)
    full = run("snapshot", "export", "site", "-o", "/dev/full")
    assert (full.exit_code, full.stdout) == (8, "")
    assert "/dev/full: No space left on device" in full.stderr
    nowhere = run("snapshot", "export", "site", "-o", str(tmp_path / "no/layer"))
    assert nowhere.exit_code == 3
    assert f"{tmp_path}/no/layer" in nowhere.stderr


def test_snapshot_without_a_layer_is_not_found(run: Run, tree: PlainTree) -> None:
    tree.add_snapshot("site")
    done = run("snapshot", "export", "site")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "snapshot site: has no layer of its own" in done.stderr


def test_refused_export_has_the_daemons_sentence(run: Run, tree: PlainTree) -> None:
    directory = tree.add_snapshot("site")
    (directory / "layer.tar").mkdir()
    tree.complain_at(directory, "snapshot site: its directory 3 is lost")
    done = run("snapshot", "export", "site")
    assert done.exit_code == 1
    assert done.stderr.startswith("imgfs: snapshot site: its directory 3 is lost\n")


@pytest.mark.parametrize("total", [None, len(LAYER)])
def test_progress_counts_bytes(total: int | None) -> None:
    output = io.StringIO()
    with byte_progress(total, Console(file=output, force_terminal=True, width=120)) as draw:
        draw(1_500_000)
    assert "1.5" in output.getvalue()
