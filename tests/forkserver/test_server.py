"""When a fork server exits. tests/execution/test_forkserver.py tests what it does with containers."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from imgfs.execution.control import listen_at

PATIENCE = 30.0
SERVING = """
import socket, sys
from imgfs.forkserver import server
server._IDLE = float(sys.argv[2])
server.serve(socket.socket(fileno=int(sys.argv[1])), "/nowhere")
"""


def serving(listener: socket.socket, idle: float) -> subprocess.Popen[bytes]:
    """Start a fork server that exits after `idle` seconds without a command."""
    words = [sys.executable, "-c", SERVING, str(listener.fileno()), str(idle)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])


def test_an_idle_fork_server_exits(tmp_path: Path) -> None:
    with listen_at(tmp_path / "socket") as listener, serving(listener, 0.01) as server:
        assert server.wait(PATIENCE) == 0


def test_a_fork_server_exits_with_the_daemon(tmp_path: Path) -> None:
    with listen_at(tmp_path / "socket") as listener, serving(listener, 600) as server:
        assert server.stdin
        server.stdin.close()
        assert server.wait(PATIENCE) == 0


def test_a_connection_without_a_request_does_no_harm(tmp_path: Path) -> None:
    with listen_at(tmp_path / "socket") as listener, serving(listener, 600) as server:
        for message in (b"", b"hello"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                asking.settimeout(PATIENCE)
                asking.connect(str(tmp_path / "socket"))
                asking.send(message)
                assert asking.recv(100) == b""
        assert server.poll() is None
        assert server.stdin
        server.stdin.close()
        assert server.wait(PATIENCE) == 0
