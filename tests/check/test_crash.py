"""`imgfs repair` is killed at system calls that change files: the next repair finishes its work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imgfs.disk.durable import TEMPORARY
from tests.check.scene import HARMS, MADE, Damage
from tests.support.mounted import IMGFS, PATIENCE
from tests.support.programs import program

HARMED = [
    ("imgfs.db", "cut"),
    ("blobs/*/*/*", "flip"),
    ("layers/*/*/tar", "flip"),
    ("views/*.erofs", "cut"),
    ("ingest/*/meta", "cut"),
]
KILLS = {
    "rename": (1, 2, 3, 2, 1),
    "link": (1, 1),
    "unlink": (2, 1, 3),
    "fsync": (1, 3, 5, 2),
    "pwrite64": (2, 5, 20),
}
"""For each system call: each repair in turn is killed at the call with this number."""


def killed(state: Path, call: str, number: int) -> bool:
    """Run a repair that is killed at a system call; return whether it reached the call."""
    strace = [program("strace"), "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}"]
    inject = ["-e", f"inject={call}:signal=KILL:when={number}"]
    repair = [*IMGFS, "repair", "--deep", "--state", str(state)]
    done = subprocess.run([*strace, *inject, *repair], capture_output=True, check=False, timeout=PATIENCE)
    return done.returncode in (-9, 137)


@pytest.mark.parametrize("call", KILLS)
def test_the_next_repair_finishes_after_repeated_kills(unmounted: Damage, call: str) -> None:
    state = unmounted.state
    harmed: list[bytes] = []
    for pattern, harm in HARMED:
        path = unmounted.only(pattern)
        HARMS[harm](path)
        if pattern.startswith(("imgfs.db", "blobs", "layers")):
            harmed.append(path.read_bytes())
    assert killed(state, call, KILLS[call][0])
    for number in KILLS[call][1:]:
        killed(state, call, number)
    assert unmounted.run("repair", "--deep")[0] == 0
    assert unmounted.damaged("--deep") == []
    kept = [path.read_bytes() for path in state.rglob("*") if path.is_file() and "damaged" in str(path)]
    assert all(data in kept for data in harmed), "a damaged file may be the only copy, so repair keeps it"
    unmounted.mounted.start()
    content = unmounted.mounted.content / MADE.layers[0].digest
    unmounted.assert_served(labelled=content.exists() and "user.label.shape" in os.listxattr(content))
    unmounted.mounted.stop()
    left = [path.name for path in state.iterdir() if path.name.startswith(TEMPORARY)]
    assert left == []
