"""Fixtures of the command line's tests: a tree without a daemon, and commands run against it in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imgfs.cli import main
from tests.cli.plain_tree import PlainTree

Run = Callable[..., Result]


@pytest.fixture
def tree(tmp_path: Path) -> PlainTree:
    """An empty tree of plain files."""
    path = tmp_path / "tree"
    path.mkdir()
    return PlainTree(path)


@pytest.fixture
def run(tree: PlainTree) -> Run:
    """Run imgfs with these arguments against the tree."""

    def invoke(*arguments: str) -> Result:
        return CliRunner(env={"IMGFS_MOUNTPOINT": str(tree.path)}).invoke(main, arguments)

    return invoke
