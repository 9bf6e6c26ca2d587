"""`imgfs ls` over a plain tree."""

from __future__ import annotations

import json
import os

from imgfs.cli.table import local_time
from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])
OTHER = image([layer([File("f", b"y")]), layer([File("g", bytes(5000))], "none")])
BOX_SIZE = sum(len(one.blob) for one in BOX.layers)
MOMENT = 1_700_000_000


def fill(tree: PlainTree) -> None:
    tree.add(BOX, "mytool", "docker.io/library/alpine:3.20", here=1 << 20)
    tree.add(OTHER, "quay.io/a/b/c:1", here=50)
    for path in (tree.images / "mytool", tree.images / "quay.io/a/b/c:1"):
        os.utime(path, (MOMENT, MOMENT), follow_symlinks=False)


def test_empty_tree_is_a_head_and_an_empty_array(run: Run) -> None:
    assert run("ls").stdout.split() == ["NAME", "DIGEST", "UPDATED", "COMPLETE", "SIZE"]
    assert json.loads(run("ls", "--format", "json").stdout) == []
    assert run("ls", "-q").stdout == ""


def test_table_has_a_line_a_name_with_a_short_digest(run: Run, tree: PlainTree) -> None:
    fill(tree)
    lines = run("ls").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["docker.io/library/alpine:3.20", "mytool", "quay.io/a/b/c:1"]
    assert lines[2].split() == [
        "mytool",
        BOX.digest[:19],
        *local_time(MOMENT * 10**9).split(),
        "yes",
        str(BOX_SIZE),
        "B",
    ]
    assert lines[3].split()[4] == "no"


def test_json_has_stable_keys_and_full_digests(run: Run, tree: PlainTree) -> None:
    fill(tree)
    rows = json.loads(run("ls", "--format", "json").stdout)
    assert rows[1] == {
        "name": "mytool",
        "digest": BOX.digest,
        "updated": "2023-11-14T22:13:20Z",
        "complete": True,
        "size": BOX_SIZE,
        "local": BOX_SIZE,
    }
    assert rows[2]["local"] == 100
    assert not rows[2]["complete"]


def test_quiet_is_the_names_alone(run: Run, tree: PlainTree) -> None:
    fill(tree)
    assert run("ls", "-q").stdout == "docker.io/library/alpine:3.20\nmytool\nquay.io/a/b/c:1\n"


def test_image_that_goes_meanwhile_is_left_out(run: Run, tree: PlainTree) -> None:
    fill(tree)
    (tree.images / BOX.digest / "status.json").unlink()
    assert [row["name"] for row in json.loads(run("ls", "--format", "json").stdout)] == ["quay.io/a/b/c:1"]


def test_image_of_which_nothing_is_known_has_no_size(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "mytool", parts=[], complete=False)
    assert run("ls").stdout.splitlines()[1].split()[-2:] == ["no", "-"]
