"""The program as a whole: what it imports, what it says of wrong usage, and that any failure ends in an exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from imgfs.cli import main
from imgfs.cli.tree import RegisteredName, Tree
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

COMMANDS = main.list_commands(click.Context(main))
HEAVY = ("trio", "httpx", "pyfuse3", "rich", "msgspec", "sqlite3")


def loaded(tree: PlainTree, *arguments: str) -> set[str]:
    """The modules that a run of imgfs loads."""
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(tree.path)}
    command = [sys.executable, "-X", "importtime", "-m", "imgfs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [("ls",), ("ls", "--format", "json"), ("status",), ("snapshot", "ls"), ("ps",)])
def test_everyday_commands_load_nothing_heavy(tree: PlainTree, arguments: tuple[str, ...]) -> None:
    assert loaded(tree, *arguments).isdisjoint(HEAVY)


def test_help_loads_nothing_heavy(tree: PlainTree) -> None:
    assert loaded(tree, "--help").isdisjoint(HEAVY)


def test_help_names_every_command_in_one_line_and_the_exit_codes() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert "..." not in text.partition("Commands:")[2].partition("Exit codes")[0]
    assert "130 interrupted" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_its_options_and_points_to_the_exit_codes(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert "Exit codes and environment: `imgfs --help`." in done.stdout
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert all(one.help for one in command.params if isinstance(one, click.Option))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("pull",),
        ("pull", "a", "b"),
        ("ls", "--format", "xml"),
        ("rm",),
        ("tag", "a"),
        ("status", "--watch"),
        ("status", "--watch", "--format", "json"),
        ("completion", "tcsh"),
        ("man", "nonsense"),
        ("mount", "--nonsense"),
        ("umount", "a", "b"),
        ("pull", "UPPER/case"),
        ("pull", ""),
        ("pull", ".."),
        ("inspect", "x/y@sha256:12"),
        ("snapshot",),
        ("snapshot", "nonsense"),
        ("snapshot", "rm"),
        ("snapshot", "export"),
    ],
)
def test_wrong_usage_is_2_and_says_nothing_on_stdout(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert not done.stdout
    assert done.stderr


@pytest.mark.parametrize("command", ["ls", "status"])
def test_without_a_mount_the_failure_says_how_to_make_one(tmp_path: Path, command: str) -> None:
    done = CliRunner().invoke(main, [command, "--mountpoint", str(tmp_path)])
    assert done.exit_code == 1
    assert f"imgfs mount {tmp_path}" in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        (errno.EACCES, 4, "use root or the user who mounted it"),
        (errno.ENOTCONN, 1, "its daemon has ended"),
        (errno.EIO, 1, "Input/output error"),
    ],
)
def test_tree_that_does_not_let_in_is_explained(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, code: int, sentence: str
) -> None:
    def refuse(path: str) -> os.statvfs_result:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "statvfs", refuse)
    done = run("ls")
    assert (done.exit_code, done.stdout) == (code, "")
    assert sentence in done.stderr


def test_the_option_wins_over_the_environment(run: Run, tmp_path: Path) -> None:
    assert run("ls", "--mountpoint", str(tmp_path)).exit_code == 1


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(107, "Transport endpoint is not connected", "/m/images"), 1, "daemon of the mount has ended"),
        (OSError(28, "No space left on device", "/m/images"), 8, "/m/images: No space left on device"),
    ],
)
def test_what_a_command_lets_through_becomes_an_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, sentence: str
) -> None:
    def broken(tree: Tree) -> list[RegisteredName]:
        raise raised

    monkeypatch.setattr(Tree, "names", broken)
    done = run("ls")
    assert done.exit_code == code
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("bogus",), 2),
        (("ls", "--bogus"), 2),
        (("run", "--bogus"), 125),
        (("inspect", "nothing/here:1"), 3),
        (("run", "nothing/here:1", "true"), 125),
        ((), 2),
    ],
)
def test_where_stderr_takes_nothing_the_exit_code_tells_all_the_same(
    tree: PlainTree, arguments: tuple[str, ...], code: int
) -> None:
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(tree.path)}
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "imgfs", *arguments]
        assert subprocess.run(command, stderr=full, stdout=full, check=False, env=environment).returncode == code


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("ls", "--help")])
def test_a_stdout_that_takes_nothing_is_a_sentence(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "imgfs", *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=full, check=False, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (8, 1)
    assert "No space left on device; make room" in done.stderr


def test_a_program_that_may_open_too_few_files_says_so(tree: PlainTree) -> None:
    """All of them are taken but the one that loading takes."""
    script = (
        "import os, resource, sys; from imgfs.cli import main; import imgfs.cli.images.ls;"
        "top = os.dup(0); resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1, top + 1));"
        "sys.argv = ['imgfs', 'ls']; main()"
    )
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(tree.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Too many open files; " in done.stderr
    assert "raise it (`ulimit -n`" in done.stderr
