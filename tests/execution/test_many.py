"""Many containers at once, and proof that none of them leaves anything."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

from tests.execution.box import PATIENCE, Box
from tests.support.mounted import IMGFS

COUNT, AT_ONCE = 20, 10


def test_twenty_containers_leave_nothing(box: Box) -> None:
    def one(number: int) -> int | None:
        script = f"echo {number} > /n; exit {number}"
        return box.ended(box.start("box", "sh", "-c", script, id=f"n{number}", remove=True)).exit_code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(one, range(COUNT))) == list(range(COUNT))
    box.assert_nothing_stays(*(f"n{number}" for number in range(COUNT)))
    for number in range(COUNT):
        kept = box.records.find_deleted(f"n{number}")
        assert kept is not None
        assert kept.status.exit_code == number


def test_of_many_containers_with_one_id_one_starts(box: Box) -> None:
    command = [*IMGFS, "run", "-d", "--name", "same", "box", "sleep", "100"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=box.environment) for _ in range(4)
    ]
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 125, 125, 125]
    assert sum(b"container same: exists already" in errors for _, errors in said) == 3
    assert len(box.snapshots()) == 1
    assert box.record("same").status().status == "running"
