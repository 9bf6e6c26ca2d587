"""`imgfs ps`, `logs`, `wait`, `delete` and `kill` over a tree of plain files: what they print and how they fail."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli.containers.ending import signal_number
from imgfs.cli.containers.ps import ps
from imgfs.cli.failure import Failure
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree


def add(tree: PlainTree, id: str, log: bytes = b"", **facts: Any) -> Path:
    """A container's directory."""
    directory = tree.path / "containers" / id
    directory.mkdir(parents=True)
    state = {
        "id": id,
        "status": "stopped",
        "bundle": str(tree.path / "records" / id / "bundle"),
        "image": "registry.test/app:1",
        "created": "2026-01-01T00:00:00Z",
        "started": "2026-01-01T00:00:01Z",
        "finished": "2026-01-01T00:00:02Z",
        "args": ["sh", "-c", "echo a word"],
        "exit_code": 0,
        "signal": None,
        "oom": False,
        "reason": "",
    }
    (directory / "state.json").write_text(json.dumps(state | facts))
    _gather(directory.parent)
    (directory / "log").write_bytes(log)
    return directory


def _gather(containers: Path) -> None:
    """The files that have the states of many."""
    states = [json.loads((one / "state.json").read_bytes()) for one in sorted(containers.iterdir()) if one.is_dir()]
    (containers / "_all").write_text(json.dumps(states))
    (containers / "_running").write_text(json.dumps([one for one in states if one["status"] != "stopped"]))


@pytest.fixture
def deleted(tree: PlainTree) -> Path:
    directory = tree.path / ".imgfs/deleted/containers"
    directory.mkdir(parents=True)
    return directory


def test_ps_lists_what_runs_and_all_of_it_if_that_is_asked_for(tree: PlainTree, run: Run, deleted: Path) -> None:
    add(tree, "web", status="running", pid=1, exit_code=None, finished=None)
    add(tree, "done", exit_code=3)
    add(tree, "shot", exit_code=137, signal=9, oom=True)
    add(tree, "lost", exit_code=None, finished=None)
    assert run("ps", "-q").stdout.split() == ["web"]
    assert run("ps", "-aq").stdout.split() == ["done", "lost", "shot", "web"]
    lines = run("ps", "-a").stdout.splitlines()
    assert lines[0].split() == ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS"]
    assert "sh -c 'echo a word'" in lines[1]
    for line, words in zip(
        lines[1:],
        ("exited with 3,", "ended, status unknown", "killed by SIGKILL, out of memory,", "running since"),
        strict=True,
    ):
        assert words in line


def test_ps_tells_programs_what_the_files_tell(tree: PlainTree, run: Run, deleted: Path) -> None:
    directory = add(tree, "web", status="running")
    assert json.loads(run("ps", "--format", "json").stdout) == [json.loads((directory / "state.json").read_text())]


def test_ps_of_many_holds_few(tree: PlainTree, run: Run, deleted: Path) -> None:
    """A hundred thousand took a gigabyte."""
    one = json.loads((add(tree, "one") / "state.json").read_bytes())
    many = [one | {"id": f"n{number}", "reason": "x" * 1000} for number in range(5000)]
    (tree.path / "containers/_all").write_text("[\n" + ",\n".join(map(json.dumps, many)) + "\n]\n")
    with (tree.path / "stdout").open("w") as stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        tracemalloc.start()
        try:
            ps.main(["-a", "--format", "json", "--mountpoint", str(tree.path)], standalone_mode=False)
            assert tracemalloc.get_traced_memory()[1] < 3 << 20
        finally:
            tracemalloc.stop()
    assert (tree.path / "stdout").read_text() == json.dumps(many, indent=2) + "\n"


def test_ps_says_where_there_is_no_list(tree: PlainTree, run: Run) -> None:
    (tree.path / "containers/_all").write_text('[{"id": "web"}, ')
    done = run("ps", "-aq")
    assert (done.exit_code, "_all: is not a JSON array" in done.stderr) == (6, True)


def test_one_damaged_container_keeps_nobody_from_seeing_the_others(tree: PlainTree, run: Run, deleted: Path) -> None:
    good = json.loads((add(tree, "good") / "state.json").read_bytes())
    states = [{"id": "bad", "error": "container bad: is damaged"}, good]
    (tree.path / "containers/_all").write_text(json.dumps(states))
    done = run("ps", "-aq")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "good\n", "imgfs: container bad: is damaged\n")


def test_an_id_nobody_chose_may_be_cut_short_as_long_as_it_is_the_only_one(
    tree: PlainTree, run: Run, deleted: Path
) -> None:
    add(tree, "abc100000000", b"one\n")
    add(tree, "abc200000000", b"two\n")
    add(tree, "abc", b"three\n")
    assert run("logs", "abc1").stdout == "one\n"
    assert run("logs", "abc").stdout == "three\n"
    done = run("logs", "ab")
    assert (done.exit_code, done.stderr) == (2, "imgfs: container ab: 2 IDs have this prefix; give more characters\n")
    assert run("logs", "x").exit_code == 3
    assert run("logs", "../abc").exit_code == 2


def test_a_name_somebody_chose_is_never_meant_by_its_beginning(tree: PlainTree, run: Run, deleted: Path) -> None:
    add(tree, "web2", exit_code=5)
    for command in ("kill", "wait", "delete", "logs"):
        assert run(command, "web").exit_code == 3
    (deleted / "web").write_text(json.dumps({"id": "web", "exit_code": 3}))
    assert run("delete", "web").stdout == run("wait", "web").stdout == "3\n"
    assert (tree.path / "containers/web2").exists()


def test_logs_begin_with_what_was_set_aside(tree: PlainTree, run: Run, deleted: Path) -> None:
    directory = add(tree, "web", b"third\nfourth")
    (directory / "log.1").write_bytes(b"first\nsecond\n")
    assert run("logs", "web").stdout == "first\nsecond\nthird\nfourth"
    assert run("logs", "-n", "3", "web").stdout == "second\nthird\nfourth"
    assert run("logs", "--tail", "0", "web").stdout == ""
    assert run("logs", "--follow", "--tail", "1", "web").stdout == "fourth"


def test_wait_prints_the_status_of_each(tree: PlainTree, run: Run, deleted: Path) -> None:
    add(tree, "one", exit_code=3)
    (deleted / "two").write_text(json.dumps({"id": "two", "exit_code": 143}))
    assert run("wait", "one", "two").stdout == "3\n143\n"


def test_an_end_that_nobody_saw_is_said_to_be_unknown(tree: PlainTree, run: Run, deleted: Path) -> None:
    add(tree, "one", exit_code=None, reason="the supervisor was killed")
    add(tree, "two", exit_code=4)
    done = run("wait", "one", "two")
    assert (done.exit_code, done.stdout) == (1, "unknown\n4\n")
    assert done.stderr == "imgfs: container one: the supervisor was killed\n"


def test_deleting_a_deleted_one_tells_how_it_ended(tree: PlainTree, run: Run, deleted: Path) -> None:
    (deleted / "gone").write_text(json.dumps({"id": "gone", "exit_code": 7}))
    (deleted / "lost").write_text(json.dumps({"id": "lost", "reason": "damaged"}))
    done = run("delete", "gone")
    assert (done.exit_code, done.stdout) == (7, "7\n")
    done = run("delete", "lost")
    assert (done.exit_code, done.stdout, done.stderr) == (125, "unknown\n", "imgfs: container lost: damaged\n")
    assert run("delete", "nobody").exit_code == 3


def test_a_signal_to_what_has_ended_says_so(tree: PlainTree, run: Run, deleted: Path) -> None:
    add(tree, "one")
    done = run("kill", "one")
    assert (done.exit_code, done.stderr) == (
        1,
        "imgfs: container one: has ended; no process can receive a signal\n",
    )
    assert run("exec", "one", "true").exit_code == 125


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("sigkill", 9),
        ("9", 9),
        ("RTMIN+3", 37),
        ("SIGRTMAX-1", 63),
        ("HUP+1", None),
        ("RTMIN+31", None),
        ("0", None),
        ("65", None),
        ("", None),
        ("TERM+x", None),
    ],
)
def test_signals_by_name_and_number(text: str, number: int | None) -> None:
    if number is None:
        with pytest.raises(Failure):
            signal_number(text)
    else:
        assert signal_number(text) == number


def test_completion_knows_the_ids(tree: PlainTree, deleted: Path) -> None:
    import click

    from imgfs.cli.containers.lookup import complete_container

    add(tree, "web-1")
    add(tree, "db")
    context = click.Context(click.Command("logs"))
    context.params["mountpoint"] = str(tree.path)
    found = complete_container(context, click.Argument(["id"]), "w")
    assert [item.value for item in found] == ["web-1"]
