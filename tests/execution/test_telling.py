"""What is told of a container: to programs by the runtime specification's words, to people in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.execution.records.record import LOST, Status
from imgfs.execution.records.records import Record, Records
from imgfs.execution.telling import line_of, state_of
from tests.support.containers import fabricated, stopped

RUNNING = Status(status="running", pid=42, started="2026-01-01T00:00:01Z")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return fabricated(Records(tmp_path), "one", RUNNING)


def test_a_state_has_the_fields_of_the_runtime_specification(record: Record) -> None:
    state = state_of(record.container(), RUNNING, "/b")
    assert {key: state[key] for key in ("ociVersion", "id", "status", "pid", "bundle", "annotations")} == {
        "ociVersion": "1.0.2",
        "id": "one",
        "status": "running",
        "pid": 42,
        "bundle": "/b",
        "annotations": {"some.label": "a value"},
    }
    assert (state["image"], state["runtime"]["name"], state["exit_code"]) == ("registry.test/app:1", "runc", None)


def test_a_state_has_a_pid_only_as_long_as_there_is_a_process(record: Record) -> None:
    assert "pid" not in {key for key, value in state_of(record.container(), stopped(0), "/b").items() if value}


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (Status(status="created"), "created at 2026-01-01T00:00:00Z, not started"),
        (RUNNING, "running since 2026-01-01T00:00:01Z (pid 42)"),
        (stopped(3, finished="2026-01-01T00:00:02Z"), "exited with 3 at 2026-01-01T00:00:02Z"),
        (
            stopped(137, signal=9, oom=True, finished="2026-01-01T00:00:02Z"),
            "killed by SIGKILL, out of memory at 2026-01-01T00:00:02Z",
        ),
        (stopped(162, signal=34, finished=None), "killed by SIGRTMIN"),
        (stopped(163, signal=35, finished=None), "killed by signal 35"),
        (Status(status="stopped", reason=LOST), f"ended: {LOST}"),
        (Status(status="stopped", reason="two\nlines\n"), "ended: two lines"),
    ],
)
def test_a_line_for_people(tmp_path: Path, status: Status, line: str) -> None:
    made = fabricated(Records(tmp_path), "one", status, created="2026-01-01T00:00:00Z")
    assert line_of(made.container(), status) == line
