"""Where a command begins: what starts containers is done by the daemon's starter if there is one, the rest here.

Whatever is imported on this way is waited for by everybody who starts a container.
"""

from __future__ import annotations

import os
import sys

SERVED = ("run", "start")
"""The commands that the starter is asked for."""
_INTERRUPTED = 130


def main() -> None:
    """The program `imgfs`."""
    try:
        _main()
    except KeyboardInterrupt:  # before there was a command that says so
        os.write(2, b"imgfs: interrupted\n")
        sys.exit(_INTERRUPTED)


def _main() -> None:
    if sys.argv[1:2] and sys.argv[1] in SERVED:
        from imgfs.forkserver.client import run_on_fork_server

        code = run_on_fork_server(sys.argv)
        if code is not None:
            os._exit(code)  # nothing was written here, and nothing is open
    import signal

    from imgfs.cli import main as program

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it is not told how his children ended
    program()
