"""`imgfs push` over a plain tree: which file it opens, and what it makes of the report there."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imgfs.cli.progress import push_progress
from imgfs.testing.images import ARM64, File, image, index, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", bytes(3000))])])
TARGET = "registry.test:5000/team/box:1"


def report(*outcomes: str, name: str = TARGET, mirror: str | None = None) -> dict[str, Any]:
    """What the door answers."""
    parts = [
        {
            "kind": "layer",
            "digest": BOX.layers[0].digest,
            "size": 1500 * number,
            "media_type": "m",
            "outcome": outcome,
            "source": "team/base" if outcome == "mounted" else None,
        }
        for number, outcome in enumerate(outcomes, 1)
    ]
    totals = {"sent": 1500, "mounted": 3000, "present": 0}
    return {"name": name, "mirror": mirror, "digest": BOX.digest, "media_type": "m", **totals, "parts": parts}


def door(tree: PlainTree, name: str, said: dict[str, Any], options: str = "", digest: str = BOX.digest) -> Path:
    """Let the tree answer this to a push."""
    path = tree.images / digest / f"push{options}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said))
    return path


def test_each_part_is_told_and_the_sums(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    door(tree, TARGET, report("sent", "mounted"))
    done = run("push", "box", TARGET)
    assert (done.exit_code, done.stderr) == (0, "")
    short = f"sha256:{BOX.layers[0].digest.hex[:12]}"
    assert done.stdout.splitlines() == [
        "         KIND   DIGEST                 SIZE  FROM",
        f"sent     layer  {short}  1.5 kB",
        f"mounted  layer  {short}  3.0 kB  team/base",
        f"{TARGET} is {BOX.digest}: 1.5 kB sent, 3.0 kB mounted, 0 B already present",
    ]


def test_a_mirror_that_gets_it_is_named(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    door(tree, TARGET, report("sent", mirror="mirror.test"))
    told = "imgfs: pushes to registry.test:5000 go to mirror.test, as its hosts.toml says\n"
    assert run("push", "box", TARGET).stderr == told
    assert run("push", "-q", "box", TARGET).stderr == ""


def test_json_is_the_report(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    door(tree, TARGET, report("sent"))
    assert json.loads(run("push", "--format", "json", "box", TARGET).stdout) == report("sent")


def test_a_name_at_a_registry_is_pushed_under_itself(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, TARGET)
    door(tree, TARGET, report("present"))
    assert run("push", TARGET).exit_code == 0


@pytest.mark.parametrize("image", ["box", BOX.digest])
def test_what_has_no_name_at_a_registry_needs_one(run: Run, tree: PlainTree, image: str) -> None:
    tree.add(BOX, "box")
    done = run("push", image)
    assert done.exit_code == 2
    assert "give the target" in done.stderr


def test_an_empty_name_is_not_the_image_s_own(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, TARGET)
    door(tree, TARGET, report("present"))
    done = run("push", TARGET, "")
    assert done.exit_code == 2
    assert "NAME is empty" in done.stderr


def test_a_familiar_name_is_completed_and_told_unless_quiet(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    door(tree, "docker.io/me/box:latest", report("sent", name="docker.io/me/box:latest"))
    assert run("push", "box", "me/box").stderr == "imgfs: me/box stands for docker.io/me/box:latest\n"
    assert run("push", "-q", "box", "me/box").stderr == ""


@pytest.mark.parametrize(
    ("options", "directory"),
    [
        (["--all-platforms"], ":all"),
        (["--referrers"], ":referrers"),
        (["--all-platforms", "--referrers"], ":all,referrers"),
    ],
)
def test_options_choose_the_door(run: Run, tree: PlainTree, options: list[str], directory: str) -> None:
    tree.add(BOX, "box")
    door(tree, TARGET, report("sent"), directory)
    assert run("push", *options, "box", TARGET).exit_code == 0
    assert run("push", "box", TARGET).exit_code == 3


def test_another_platform_is_pushed_as_the_image_that_it_is(run: Run, tree: PlainTree) -> None:
    theirs = image([layer([File("arm")])], platform=ARM64)
    both = index([BOX, theirs])
    tree.add(BOX, "both", index=both)
    tree.add(theirs, "theirs")
    door(tree, TARGET, report("sent"), digest=theirs.digest)
    assert run("push", "--platform", "linux/arm64", "both", TARGET).exit_code == 0
    assert run("push", "--platform", "linux/arm64", "--all-platforms", "both", TARGET).exit_code == 2


def test_foreign_layers_are_told_unless_quiet(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    door(tree, TARGET, report("foreign"))
    assert "foreign layers are not pushed" in run("push", "box", TARGET).stderr
    assert run("push", "-q", "box", TARGET).stderr == ""


def test_a_failure_is_the_daemon_s_sentence(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    path = door(tree, TARGET, {})
    path.unlink()
    path.mkdir()
    tree.complain_at(path, "push to there: registry there answered 405; it takes none")
    done = run("push", "box", TARGET)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("imgfs: push to there: registry there answered 405; it takes none\n")


def test_progress_tells_how_much_of_how_much() -> None:
    output = io.StringIO()
    with push_progress(Console(file=output, force_terminal=True, width=120)) as draw:
        draw(0, 0, 0)
        draw(1_000_000, 4_000_000, 2)
        draw(4_000_000, 4_000_000, 0)
    assert "4.0/4.0 MB" in output.getvalue()
