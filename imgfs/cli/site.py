"""Where containers are: the tree's own facts about its state directory, its runtimes and their options."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from imgfs.cli.failure import from_os_error
from imgfs.cli.tree import Tree
from imgfs.errors import Invalid
from imgfs.execution.choice import accepted, installed
from imgfs.execution.kinds import RUNTIME, Options
from imgfs.execution.records import Records
from imgfs.execution.starting import Site
from imgfs.plugins.alone import objects_of


def site_of(tree: Tree) -> Site:
    """Where containers are started. Raises NotFound where no runtime is installed."""
    state, options = state_of(tree), _options(tree)
    runtimes = installed(objects_of(RUNTIME), options.runtime)
    return Site(
        tree.path, state, accepted(runtimes, Records(state).runtime_root), options.log_bytes, options.deadline_seconds
    )


def state_of(tree: Tree) -> Path:
    """The state directory of the tree's daemon."""
    path = f"{tree.path}/.imgfs/state.json"
    try:
        return Path(tree.read_json(path)["state"])
    except OSError as error:
        raise from_os_error(error, path) from None


def _options(tree: Tree) -> Options:
    path = f"{tree.path}/.imgfs/plugins/execution/oci/config"
    try:
        with open(path, "rb") as file:
            return msgspec.convert(tomllib.load(file), Options)
    except FileNotFoundError:
        raise Invalid("execution.oci: is no plugin of this mount; see `imgfs plugins`") from None
    except OSError as error:
        raise from_os_error(error, path) from None
