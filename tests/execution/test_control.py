"""What one end of a supervisor's socket receives from the other end."""

from __future__ import annotations

import socket

from imgfs.execution.control import Connection


def test_a_last_message_arrives_although_the_sender_left_a_request_unread() -> None:
    ours, theirs = (Connection(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    with ours:
        ours.send({"do": "wait"})
        theirs.send({"ok": True})
        theirs.close()
        assert ours.receive() == {"ok": True}
        assert ours.receive() is None
