"""What one end of a supervisor's socket hears of the other."""

from __future__ import annotations

import socket

from imgfs.execution.control import Connection


def test_last_words_are_heard_although_the_other_end_left_a_question_unread() -> None:
    ours, theirs = (Connection(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with ours:
        ours.send({"do": "wait"})
        theirs.send({"ok": True})
        theirs.close()
        assert ours.receive() == {"ok": True}
        assert ours.receive() is None
