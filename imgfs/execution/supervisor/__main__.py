"""`python -m imgfs.execution.supervisor DESCRIPTOR MOUNTPOINT`: the descriptor is a connection that sends the job."""

from __future__ import annotations

import socket
import sys

from imgfs.execution.control import Connection
from imgfs.execution.supervisor.life import supervise

supervise(Connection(socket.socket(fileno=int(sys.argv[1]))))
