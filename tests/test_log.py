"""The log: one JSON object per line, with the facts and the traceback, within the size limit."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.log import ASIDE, LINE_MAX, configure_log, is_journal, unwritten_lines

SIZE = 1 << 20


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


def test_an_event_is_logged_as_one_line_with_its_facts(tmp_path: Path, logger: logging.Logger) -> None:
    configure_log(tmp_path / "log", "info", SIZE, to_stderr=False)
    logger.warning("failed", extra={"subject": "a\nb", "errno": 5})
    logger.debug("not this")
    (line,) = lines(tmp_path / "log")
    assert line.pop("timestamp")
    assert line == {"level": "warning", "logger": "imgfs.test", "event": "failed", "subject": "a\nb", "errno": 5}


def test_a_traceback_is_part_of_the_line(tmp_path: Path, logger: logging.Logger) -> None:
    configure_log(tmp_path / "log", "info", SIZE, to_stderr=False)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("broken")
    (line,) = lines(tmp_path / "log")
    assert "ValueError: why" in str(line["exception"])


def test_a_foreground_daemon_logs_to_stderr_too(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_log(tmp_path / "log", "info", SIZE, to_stderr=True)
    logger.info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"
    assert lines(tmp_path / "log")[0]["event"] == "hello"


def test_the_log_files_never_exceed_twice_the_size_limit(tmp_path: Path, logger: logging.Logger) -> None:
    configure_log(tmp_path / "log", "info", 300, to_stderr=False)
    for number in range(200):
        logger.info("event", extra={"number": number})
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", ASIDE]
    kept = [line["number"] for name in (ASIDE, "log") for line in lines(tmp_path / name)]
    assert kept == list(range(200 - len(kept), 200))


def test_a_line_that_is_too_long_is_cut(tmp_path: Path, logger: logging.Logger) -> None:
    configure_log(tmp_path / "log", "info", SIZE, to_stderr=False)
    logger.info("short", extra={"fact": "x" * LINE_MAX})
    logger.info("\x00" * LINE_MAX, extra={"fact": "y"})
    first, second = lines(tmp_path / "log")
    assert first["event"] == "short"
    assert str(first["cut"]).endswith("xxx")
    assert str(second["event"]).startswith("\x00")
    assert all(len(line) <= LINE_MAX + 1 for line in (tmp_path / "log").read_text().splitlines(keepends=True))


def test_lines_to_the_journal_start_with_their_priority(
    tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        configure_log(tmp_path / "log", "debug", SIZE, to_stderr=True)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            logger.log(level, "one\ntwo")
    told = (tmp_path / "journal").read_text().splitlines()
    assert [line[:3] for line in told] == ["<7>", "<6>", "<4>", "<3>", "<3>"]
    assert [json.loads(line[3:]) for line in told] == lines(tmp_path / "log")


def test_a_stderr_that_is_not_the_journal_gets_plain_lines(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET https://user:secret@host/v2/", "GET https://***@host/v2/"),
        ("https://bucket/blob?X-Signature=secret&a=b failed", "https://bucket/blob?*** failed"),
        ("{'Authorization': 'Bearer secret'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: basic c2VjcmV0", "authorization: basic ***"),
        ("token eyJhbGci.eyJzdWIi.c2VjcmV0 is old", "token *** is old"),
        ("Basic authentication at https://host/v2/", "Basic authentication at https://host/v2/"),
    ],
)
def test_no_credential_gets_into_a_line(tmp_path: Path, logger: logging.Logger, text: str, left: str) -> None:
    configure_log(tmp_path / "log", "info", SIZE, to_stderr=False)
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception(text, extra={"fact": text, "inner": {"key": [text]}})
    (line,) = lines(tmp_path / "log")
    assert (line["event"], line["fact"], line["inner"]) == (left, left, {"key": [left]})
    assert str(line["exception"]).endswith(left)


def test_lines_that_cannot_be_written_are_kept_in_memory(tmp_path: Path, logger: logging.Logger) -> None:
    (tmp_path / "log").mkdir()  # not even root can write to a directory
    configure_log(tmp_path / "log", "info", SIZE, to_stderr=False)
    logger.warning("first")
    logger.warning("second")
    assert [json.loads(line)["event"] for line in unwritten_lines().splitlines()] == ["first", "second"]
