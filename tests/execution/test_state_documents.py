"""The state documents of a container: JSON of the runtime specification for programs, and a line for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.execution.records.record import LOST, ContainerRecord, ContainerStatus
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.state_documents import state_document, summary_line
from tests.support.containers import fabricated, stopped

RUNNING = ContainerStatus(status="running", pid=42, started="2026-01-01T00:00:01Z")


@pytest.fixture
def record(tmp_path: Path) -> ContainerRecord:
    return fabricated(ContainerRecords(tmp_path), "one", RUNNING)


def test_a_state_has_the_fields_of_the_runtime_specification(record: ContainerRecord) -> None:
    state = state_document(record.container(), RUNNING, "/b")
    assert {key: state[key] for key in ("ociVersion", "id", "status", "pid", "bundle", "annotations")} == {
        "ociVersion": "1.0.2",
        "id": "one",
        "status": "running",
        "pid": 42,
        "bundle": "/b",
        "annotations": {"some.label": "a value"},
    }
    assert (state["image"], state["runtime"]["name"], state["exit_code"]) == ("registry.test/app:1", "runc", None)


def test_a_state_has_a_pid_only_while_there_is_a_process(record: ContainerRecord) -> None:
    assert "pid" not in {key for key, value in state_document(record.container(), stopped(0), "/b").items() if value}


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (ContainerStatus(status="created"), "created at 2026-01-01T00:00:00Z, not started"),
        (RUNNING, "running since 2026-01-01T00:00:01Z (pid 42)"),
        (stopped(3, finished="2026-01-01T00:00:02Z"), "exited with 3 at 2026-01-01T00:00:02Z"),
        (
            stopped(137, signal=9, oom=True, finished="2026-01-01T00:00:02Z"),
            "killed by SIGKILL, out of memory at 2026-01-01T00:00:02Z",
        ),
        (stopped(162, signal=34, finished=None), "killed by SIGRTMIN"),
        (stopped(163, signal=35, finished=None), "killed by signal 35"),
        (ContainerStatus(status="stopped", reason=LOST), f"ended: {LOST}"),
        (ContainerStatus(status="stopped", reason="two\nlines\n"), "ended: two lines"),
    ],
)
def test_a_line_for_people(tmp_path: Path, status: ContainerStatus, line: str) -> None:
    made = fabricated(ContainerRecords(tmp_path), "one", status, created="2026-01-01T00:00:00Z")
    assert summary_line(made.container(), status) == line
