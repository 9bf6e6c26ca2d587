"""Runs tests in their own network namespace, so that nothing they do leaves the machine, even if they fail."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.programs import program, run

PATIENCE = 100


def run_alone(path: Path, *namespaces: str) -> None:
    """Run the tests of a file in a network namespace with loopback only. pytest must not collect the file otherwise.

    `namespaces` are further ones, as options of unshare(1), such as `--mount`.
    """
    command = [program("unshare"), "--net", *namespaces, sys.executable, "-m", "pytest", "-x", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def settle(addresses: Sequence[str]) -> None:
    """Give these addresses, also public ones, to this namespace's loopback. Fails if there is another network."""
    interfaces = [name for _, name in socket.if_nameindex()]
    assert interfaces == ["lo"], f"{interfaces}: this is not a network of its own; run it by run_alone"
    run("ip", "link", "set", "lo", "up")
    for address in addresses:
        run("ip", "address", "replace", f"{address}/32", "dev", "lo")
