"""A request to the fork server arrives unchanged."""

from __future__ import annotations

import os
import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.forkserver.request import ForkRequest, program_here

WORDS = st.lists(st.binary(max_size=40).filter(lambda word: b"\0" not in word), max_size=6)


@given(WORDS, WORDS, st.integers(0, 0o777))
def test_a_request_arrives_as_it_was_made(words: list[bytes], variables: list[bytes], umask: int) -> None:
    made = ForkRequest.decode(ForkRequest(words, variables, umask, program_here()).encode())
    assert (made.words, made.variables, made.umask, made.program) == (words, variables, umask, program_here())


def test_a_request_describes_this_process_and_does_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "a=b\nc")
    before = os.umask(0o027)
    try:
        made = ForkRequest.of_this_process(["imgfs", "run"])
        assert os.umask(before) == 0o027
    finally:
        os.umask(before)
    assert (made.words, made.umask) == ([b"imgfs", b"run"], 0o027)
    assert b"ODD=a=b\nc" in made.variables


def test_a_request_longer_than_the_file_size_limit_is_refused_and_not_truncated() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            ForkRequest([b"imgfs"], [b"LONG=" + b"x" * 8192], 0, program_here()).file()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
