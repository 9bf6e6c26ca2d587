"""`imgfs pull` over a plain tree, and its progress."""

from __future__ import annotations

import io

from rich.console import Console

from imgfs.cli.progress import image_progress
from imgfs.cli.tree import Tree
from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", bytes(3000))], "none"), layer([File("g", bytes(90_000))], "none")])


def test_pull_opens_the_door_and_prints_the_digest_alone(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    done = run("pull", "box")
    assert done.exit_code == 0, done.stderr
    assert (done.stdout, done.stderr) == (f"{BOX.digest}\n", "")


def test_pull_says_what_a_familiar_name_stands_for_unless_quiet(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "docker.io/library/box:1")
    assert run("pull", "box:1").stderr == "imgfs: box:1 stands for docker.io/library/box:1\n"
    assert run("pull", "-q", "box:1").stderr == ""


def test_refused_pull_has_the_daemons_sentence_and_says_where_more_is(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    tree.complain(BOX.digest, "layer sha256:1: got 2, expected 1")
    (tree.images / BOX.digest / "pull").unlink()
    done = run("pull", "box")
    assert done.exit_code == 3
    assert not done.stdout
    assert done.stderr == (
        f"imgfs: layer sha256:1: got 2, expected 1\nimgfs: for more see `imgfs status box` and {tree.path}/.imgfs/log\n"
    )


def test_progress_has_a_bar_a_layer_and_a_total(tree: PlainTree) -> None:
    first = len(BOX.layers[0].blob)
    digest = tree.add(BOX, "box", here=first)
    status = Tree.open(str(tree.path)).status(digest)
    output = io.StringIO()
    with image_progress(Console(file=output, force_terminal=True, width=120)) as draw:
        draw(status)
        tree.set_status(digest, BOX, ["box"], 1 << 20)
        draw(Tree.open(str(tree.path)).status(digest))
    text = output.getvalue()
    assert all(f"sha256:{one.digest.hex[:12]}" in text for one in BOX.layers)
    assert "total" in text
    assert "complete" in text


def test_progress_of_an_image_that_has_one_layer_twice_draws_both(tree: PlainTree) -> None:
    twice = image([BOX.layers[0], BOX.layers[0]])
    digest = tree.add(twice, "box", here=1 << 20)
    output = io.StringIO()
    with image_progress(Console(file=output, force_terminal=True, width=120)) as draw:
        draw(Tree.open(str(tree.path)).status(digest))
    assert output.getvalue().rpartition("\x1b[?25h")[0].count(BOX.layers[0].digest.hex[:12]) >= 2
