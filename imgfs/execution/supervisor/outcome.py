"""How a container's program ended: the kernel's own word to its parent, in the terms of a status."""

from __future__ import annotations

import os
import signal

import msgspec

from imgfs.execution.groups import oom_kills
from imgfs.execution.records.record import Container, Status, now
from imgfs.execution.runtimes.runtime import NOT_EXECUTABLE, is_before_program, shell_code_of
from imgfs.execution.supervisor.streams import Streams


def outcome(process: int, status: Status, container: Container, streams: Streams) -> Status:
    """The last status after `status`; takes the end of the process of that pidfd, which has ended."""
    was_refused = status.pid is not None and is_before_program(status.pid)
    found = os.waitid(os.P_PIDFD, process, os.WEXITED)
    finished, kills = now(), oom_kills(container.snapshot)
    by_signal = found is not None and found.si_code != os.CLD_EXITED
    value = found.si_status if found is not None else 0
    words: list[str] = []
    if by_signal:
        words.append(f"ended by signal {value} ({_name(value)})")
    elif value and was_refused:
        said = streams.first()  # nobody's but the runtime's, as no program was there
        value = shell_code_of(said) or NOT_EXECUTABLE
        words.append(f"the kernel refused it: {said}")
    if kills:
        words.append("the kernel killed for want of memory")
    return msgspec.structs.replace(
        status,
        status="stopped",
        pid=None,
        start_time=None,
        finished=finished,
        exit_code=128 + value if by_signal else value,
        signal=value if by_signal else None,
        oom=kills > 0,
        reason="; ".join(words),
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time"
