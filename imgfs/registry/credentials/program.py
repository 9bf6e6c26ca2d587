"""Credential helpers (docker-credential-helpers): asked over pipes, with limits on time and output.

The name of the registry goes to stdin and the login comes from stdout. So no secret is in argv or in the environment.
No message and no log line contains output of a helper.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import AccessDenied, Malformed
from imgfs.registry.credentials.authfile import Credential, answered

OUTPUT_MAX = 64 << 10
PATIENCE = 15.0
"""Seconds until a helper that does not answer is killed."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_ABSENT = re.compile(rb"credentials not found|no credentials (server|username)", re.IGNORECASE)


async def ask_program(name: str, server: str, environment: Mapping[str, str]) -> Credential | None:
    """Ask `docker-credential-<name>` for the login to `server`. Return None if it has none.

    Raises AccessDenied, with a reason that can be shown, if the program is missing, fails, or answers wrongly, too much
    or too slowly. After PATIENCE seconds, and on cancellation, the program and its process group are killed.
    """
    if not _NAME.match(name):
        raise AccessDenied("the credential helper it names is no program name")
    program = f"docker-credential-{name}"
    path = await run_disk(shutil.which, program, os.X_OK, environment.get("PATH"))
    if path is None:
        raise AccessDenied(f"{program}, which it names, is not in PATH")
    try:
        with trio.fail_after(PATIENCE):
            status, output = await _run(path, server, environment)
    except trio.TooSlowError:
        raise AccessDenied(f"{program} did not answer within {PATIENCE:g} s") from None
    except OSError as error:
        raise AccessDenied(f"{program} could not be started ({error.strerror})") from None
    return _judged(program, status, output)


def _judged(program: str, status: int, output: bytes) -> Credential | None:
    if len(output) > OUTPUT_MAX:
        raise AccessDenied(f"{program} answered with more than {OUTPUT_MAX} bytes")
    if status:
        if _ABSENT.search(output):
            return None
        raise AccessDenied(f"{program} failed with status {status}; run it by hand")
    try:
        return answered(output)
    except Malformed as error:
        raise AccessDenied(f"{program}: {error.message}") from None


async def _run(path: str, server: str, environment: Mapping[str, str]) -> tuple[int, bytes]:
    process = await trio.lowlevel.open_process(
        [path, "get"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=dict(environment),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ended = False
    try:
        async with process.stdin, process.stdout:
            output = await _converse(process.stdin, process.stdout, server)
            if len(output) <= OUTPUT_MAX:
                await process.wait()
                ended = True
    finally:
        if not ended:
            # The process is not reaped yet, so its number still means this process and its group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
    return process.returncode or 0, output


async def _converse(stdin: trio.abc.SendStream, stdout: trio.abc.ReceiveStream, server: str) -> bytes:
    """Write the server's name and read the answer to its end, or to one byte above the limit."""
    with suppress(trio.BrokenResourceError):  # a program need not listen
        await stdin.send_all(server.encode())
    await stdin.aclose()
    output = bytearray()
    while len(output) <= OUTPUT_MAX and (piece := await stdout.receive_some(OUTPUT_MAX + 1)):
        output += piece
    return bytes(output)
