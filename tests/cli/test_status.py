"""`imgfs status` over a plain tree."""

from __future__ import annotations

import io
import json

from rich.console import Console

from imgfs.cli.progress import watch
from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])
OTHER = image([layer([File("g", bytes(5000))], "none"), layer([File("h", bytes(90_000))], "none")])
TAR = len(OTHER.layers[0].blob)


def test_overview_is_a_line_an_image_and_tells_what_is_loading(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box", "too", here=1 << 20)
    tree.add(OTHER, "other", here=TAR)
    head, *lines = sorted(run("status").stdout.splitlines(), key=lambda line: "NAMES" not in line)
    assert head.split() == ["DIGEST", "COMPLETE", "HERE", "LOADING", "NAMES"]
    found = {line.split()[0]: line for line in lines}
    assert found[BOX.digest[:19]].split()[-3:] == ["-", "box,", "too"]
    assert "1 of 2 parts, " in found[OTHER.digest[:19]]


def test_overview_of_an_image_of_which_nothing_is_known(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box", parts=[], complete=False)
    assert "unknown" in run("status").stdout


def test_details_are_a_line_a_part(run: Run, tree: PlainTree) -> None:
    tree.add(OTHER, "other", here=TAR)
    text = run("status", "other").stdout
    assert f"image     {OTHER.digest}" in text
    assert "complete  no" in text
    local, loading = text.splitlines()[-2:]
    assert local.split()[:3] == ["layer", "local", "100%"]
    assert loading.split()[:2] == ["layer", "loading"]
    assert loading.endswith("from registry.test")


def test_details_say_why_a_part_failed(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box", error="layer is wrong")
    path = tree.images / BOX.digest / "status.json"
    status = json.loads(path.read_bytes())
    status["parts"][0] |= {"state": "failed", "error": "got a, expected b"}
    path.write_text(json.dumps(status))
    text = run("status", "box").stdout
    assert "error     layer is wrong" in text
    assert text.rstrip().endswith("got a, expected b")


def test_what_is_on_its_way_is_a_line_each_the_oldest_first(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    layer = OTHER.layers[0]
    tree.transfer("pull", layer.digest, total=4000, offset=1000, rate=50, eta=61.2, started=2, names=["other"])
    error = "registry.test: the connection broke"
    tree.transfer("push", layer.digest, total=10, started=1, attempts=2, error=error)
    *_, blank, head, push, pull = run("status").stdout.splitlines()
    assert blank == ""
    assert head.split() == ["TRANSFER", "BLOB", "DONE", "SIZE", "RATE", "LEFT", "WHERE", "NOTE"]
    short = layer.digest[:19]
    assert pull.split() == ["pull", short, "25%", "4.0", "kB", "50", "B/s", "1m01s", "registry.test/team/app", "other"]
    assert push.split()[:8] == ["push", short, "0%", "10", "B", "0", "B/s", "-"]
    assert push.endswith(f"try 2: {error}")
    told = json.loads(run("status", "--format", "json").stdout)["transfers"]
    assert [one["direction"] for one in told] == ["push", "pull"]


def test_what_ends_while_it_is_looked_at_is_left_out(run: Run, tree: PlainTree) -> None:
    (tree.transfers / "gone").symlink_to("nowhere")
    assert json.loads(run("status", "--format", "json").stdout)["transfers"] == []


def test_json_is_the_object_of_one_image_and_arrays_of_all(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    status = json.loads((tree.images / BOX.digest / "status.json").read_bytes())
    assert json.loads(run("status", "box", "--format", "json").stdout) == status
    assert json.loads(run("status", "--format", "json").stdout) == {"images": [status], "transfers": []}


def test_unregistered_image_is_not_found_and_not_looked_up(run: Run, tree: PlainTree) -> None:
    done = run("status", "quay.io/x/y:1")
    assert done.exit_code == 3
    assert "quay.io/x/y:1: is not registered" in done.stderr


def test_image_whose_status_is_gone_is_not_found(run: Run, tree: PlainTree) -> None:
    tree.add(BOX, "box")
    (tree.images / BOX.digest / "status.json").unlink()
    done = run("status", "box")
    assert done.exit_code == 3
    assert ".imgfs/log" in done.stderr


def test_watch_draws_until_the_last() -> None:
    output = io.StringIO()
    frames = iter([("first", False), ("second", True)])
    watch(lambda: next(frames), Console(file=output, force_terminal=True))
    assert "first" in output.getvalue()
    assert "second" in output.getvalue()
    assert next(frames, None) is None
