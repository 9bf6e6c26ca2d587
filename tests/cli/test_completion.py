"""Completion knows commands, options and registered names; bash's copes with the colons of names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.oci.digest import chain_id
from imgfs.testing.images import File, image, layer
from tests.cli.conftest import Run
from tests.cli.plain_tree import PlainTree

BOX = image([layer([File("f", b"x")])])
CHAIN = chain_id(BOX.diff_ids).hex

ASK = """
. "$1"
COMP_LINE=$2 COMP_POINT=${#2}
_imgfs_completion imgfs
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def answer(run: Run, tree: PlainTree, tmp_path: Path) -> Callable[[str], list[str]]:
    """What bash would offer for a line."""
    tree.add_chain(BOX, tree.add(BOX, "mytool", "localhost:5000/box:1", "localhost:5000/box:2"))
    tree.add_snapshot("mysite")
    tree.add_snapshot("active/k")
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash").stdout)
    program = tmp_path / "imgfs"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"from imgfs.cli import main; main(prog_name='imgfs')\"\n")
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "IMGFS_MOUNTPOINT": str(tree.path),
    }

    def ask(line: str) -> list[str]:
        command = ["bash", "-c", ASK, "bash", str(script), line]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("imgfs pu", ["pull", "push"]),
        ("imgfs push mytool localhost:50", ["5000/box:1", "5000/box:2"]),
        ("imgfs push --all", ["--all-platforms"]),
        ("imgfs pull ", ["localhost:5000/box:1", "localhost:5000/box:2", "mytool"]),
        ("imgfs pull localhost:50", ["5000/box:1", "5000/box:2"]),
        ("imgfs status localhost:5000/box:", ["1", "2"]),
        ("imgfs rm mytool my", ["mytool"]),
        ("imgfs ls --format j", ["json"]),
        ("imgfs pull --re", ["--refresh"]),
        ("imgfs pull nothing", []),
        ("imgfs mount -o ro,view", ["ro,views=", "ro,view_idle_seconds="]),
        ("imgfs mount -o views=", ["kernel", "fuse"]),
        ("imgfs mount -o ro,views=k", ["kernel"]),
        ("imgfs config s", ["show"]),
        ("imgfs man m", ["mount", "man", "mount.imgfs"]),
        ("imgfs snap", ["snapshot"]),
        ("imgfs snapshot ex", ["export"]),
        ("imgfs snapshot rm ", ["active/k", "mysite"]),
        ("imgfs snapshot path my", ["mysite", "mytool"]),
        ("imgfs snapshot path sha256:", [CHAIN]),
        ("imgfs snapshot rm sha256:", []),
        ("imgfs snapshot commit ", ["k"]),
        ("imgfs snapshot view v my", ["mysite", "mytool"]),
        ("imgfs snapshot prepare k localhost:5000/box:", ["1", "2"]),
    ],
)
def test_bash_is_offered(answer: Callable[[str], list[str]], line: str, offered: list[str]) -> None:
    assert answer(line) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_asks_imgfs(run: Run, shell: str) -> None:
    assert f"_IMGFS_COMPLETE={shell}_complete" in run("completion", shell).stdout


def test_bash_takes_the_script(run: Run) -> None:
    text = run("completion", "bash").stdout
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
