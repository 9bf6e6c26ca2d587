"""The entry point of the program `imgfs`, and the fork server that runs commands for their callers.

`imgfs run` and `imgfs start` are handed to the fork server of the daemon if there is one. All other commands, and
commands that the fork server declines, run in the calling process. Keep the imports of this module few: every start of
a container waits for them.
"""

from __future__ import annotations

import os
import sys

SERVED = ("run", "start")
"""The commands that may run on the fork server."""
_INTERRUPTED = 130


def main() -> None:
    """Run the program `imgfs`."""
    try:
        _main()
    except KeyboardInterrupt:  # no command has installed its own handler yet
        os.write(2, b"imgfs: interrupted\n")
        sys.exit(_INTERRUPTED)


def _main() -> None:
    if sys.argv[1:2] and sys.argv[1] in SERVED:
        from imgfs.forkserver.client import run_on_fork_server

        code = run_on_fork_server(sys.argv)
        if code is not None:
            os._exit(code)  # this process wrote nothing and holds nothing open
    import signal

    from imgfs.cli import main as program

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else no exit code of a child can be read
    program()
