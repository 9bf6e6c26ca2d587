"""The caller of the fork server when the child exits before or after it begins."""

from __future__ import annotations

import os
import signal
import socket

from imgfs.forkserver.foreground import run_in_foreground
from imgfs.forkserver.request import GO

FAILED = 125


def test_a_child_that_exits_before_the_start_message_has_done_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.close()
        assert run_in_foreground(ours, os.pidfd_open(os.getpid())) is None
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_child_that_exits_without_reading_the_start_message_has_done_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        ours.close()
        theirs.recv(len(GO), socket.MSG_PEEK)
        os._exit(0)
    theirs.close()
    with ours:
        assert run_in_foreground(ours, os.pidfd_open(child)) is None
    os.waitpid(child, 0)
