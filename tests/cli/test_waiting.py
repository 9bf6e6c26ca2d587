"""Waiting in another thread, where there can be one."""

from __future__ import annotations

import os
import threading

import pytest

from imgfs.cli.images.waiting import beside


def refuse(*_: object) -> None:
    """What the limit for processes makes of a thread that begins."""
    raise RuntimeError("can't start new thread")


def fail() -> None:
    """What the mount refuses."""
    raise PermissionError(os.strerror(13))


@pytest.mark.parametrize("is_full", [False, True])
def test_it_is_waited_for_also_where_there_can_be_no_other_thread(
    monkeypatch: pytest.MonkeyPatch, *, is_full: bool
) -> None:
    if is_full:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    looks: list[int] = []
    assert beside(lambda: 7, lambda: looks.append(1)) == 7
    assert looks
    with pytest.raises(PermissionError):
        beside(fail, lambda: None)
