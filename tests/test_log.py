"""The log: one JSON object a line, with the facts and the traceback, and never larger than it may be."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs import log
from imgfs.log import configure_log, unwritten_lines


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger("imgfs")
    before, propagate = list(root.handlers), root.propagate
    yield logging.getLogger("imgfs.test")
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers, root.propagate = before, propagate
    root.setLevel(logging.NOTSET)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_a_line_with_its_facts(tmp_path: Path, logger: logging.Logger) -> None:
    configure_log(tmp_path / "log", "info", to_stderr=False)
    logger.warning("failed", extra={"subject": "a\nb", "errno": 5})
    logger.debug("not this")
    (line,) = lines(tmp_path / "log")
    assert line.pop("timestamp")
    assert line == {"level": "warning", "logger": "imgfs.test", "event": "failed", "subject": "a\nb", "errno": 5}


def test_a_traceback_is_part_of_the_line(tmp_path: Path, logger: logging.Logger) -> None:
    configure_log(tmp_path / "log", "info", to_stderr=False)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("broken")
    (line,) = lines(tmp_path / "log")
    assert "ValueError: why" in str(line["exception"])


def test_in_front_it_goes_to_stderr_too(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_log(tmp_path / "log", "info", to_stderr=True)
    logger.info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
    assert lines(tmp_path / "log")[0]["event"] == "hello"


def test_a_log_over_its_size_moves_aside(
    tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "KEPT", 300)
    configure_log(tmp_path / "log", "info", to_stderr=False)
    for number in range(10):
        logger.info("event", extra={"number": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(path.stat().st_size <= 300 for path in tmp_path.iterdir())


def test_what_the_file_does_not_take_is_kept(tmp_path: Path, logger: logging.Logger) -> None:
    (tmp_path / "log").mkdir()  # nobody can write to that, root neither
    configure_log(tmp_path / "log", "info", to_stderr=False)
    logger.warning("first")
    logger.warning("second")
    assert [json.loads(line)["event"] for line in unwritten_lines().splitlines()] == ["first", "second"]
