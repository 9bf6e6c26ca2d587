"""Runs one more program in a running container: the container's runtime runs as a child of the caller.

The program gets the user, environment, directory and capabilities of the container's own process, except for what the
caller changes. The runtime itself forwards between the caller's terminal and the program's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import msgspec

from imgfs.errors import Malformed
from imgfs.execution.control import open_directory, open_files_max
from imgfs.execution.launch import check_files
from imgfs.execution.runtimes.executable import refusal
from imgfs.execution.runtimes.runtime import OciRuntime, shell_code

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SHARED = (signal.SIGINT, signal.SIGQUIT)
"""A terminal sends these to its whole foreground group: the runtime receives them itself and forwards them."""

_NOT_EXECUTED = 1
"""Exit code of the runtime's process in the container when the kernel refused to execute the program."""


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What to run. `env` overrides the container's environment; None removes a variable."""

    args: Sequence[str]
    terminal: bool = False
    interactive: bool = False
    cwd: str | None = None
    env: Mapping[str, str | None] | None = None


def execute(runtime: OciRuntime, id: str, spec: Mapping[str, Any], entry: ExecRequest, root: str) -> int:
    """Run a program with the caller's stdout, stderr and, if interactive, stdin.

    Return its exit code, as a shell reports it.

    `spec` is the container's config.json. `root` is its root directory as its processes see it. Signals that would end
    this process are forwarded. Raises the errors of `check_files` before anything starts. Raises Malformed, and
    RuntimeFailed, with an exit code if the command is at fault; the runtime has then written its message to stderr.
    """
    check_files()
    process_spec = process_of(spec, entry)
    with tempfile.TemporaryDirectory(prefix="imgfs-exec-") as directory:
        process = Path(directory, "process.json")
        process.write_text(json.dumps(process_spec))
        mine = msgspec.structs.replace(runtime, log=Path(directory, "log"))
        stdin = None if entry.interactive or entry.terminal else subprocess.DEVNULL
        with _forwarding_signals() as children:
            child = subprocess.Popen(mine.words("exec", "--process", str(process), id), stdin=stdin)
            children.append(child)
            code = child.wait()
        if refusal := mine.refusal("exec", code):
            raise refusal
        if code == _NOT_EXECUTED and (number := _refusal(process_spec, root)):
            return shell_code(number)
        return 128 - code if code < 0 else code


def _refusal(process: Mapping[str, Any], root: str) -> int:
    """Return why the kernel did not execute the program, or 0. It is unknown if the container has ended meanwhile."""
    with suppress(OSError), open_directory(root) as directory:
        return refusal(process, directory)
    return 0


def process_of(spec: Mapping[str, Any], entry: ExecRequest) -> dict[str, Any]:
    """Return the OCI process (config.md, "Process"). Raises Malformed if the spec has none."""
    if not isinstance(spec.get("process"), dict):
        raise Malformed("config.json: has no process; the container is damaged")
    base = cast("dict[str, Any]", spec["process"])
    pairs = (str(one).partition("=") for one in base.get("env", []))
    env = {name: value for name, _, value in pairs}
    if entry.terminal:
        env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    for name, value in (entry.env or {}).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    process = {key: value for key, value in base.items() if key != "consoleSize"}
    process |= {"args": list(entry.args), "terminal": entry.terminal}
    process |= {"env": [f"{name}={value}" for name, value in env.items()], "cwd": entry.cwd or base["cwd"]}
    if "rlimits" in base:
        process["rlimits"] = [_within(one) for one in base["rlimits"]]
    return process


def _within(limit: dict[str, Any]) -> dict[str, Any]:
    """Lower a limit to what this process may set. Its own limit may be lower than that of the container's starter."""
    if limit.get("type") != "RLIMIT_NOFILE":
        return limit
    most = open_files_max()
    return limit | {name: min(limit[name], most) for name in ("hard", "soft")}


@contextmanager
def _forwarding_signals() -> Generator[list[subprocess.Popen[bytes]]]:
    """Forward the signals that would end this process to the child. This process ends with the child."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if not children:
            raise SystemExit(128 + number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _FORWARDED}
    before |= {number: signal.signal(number, _ignore) for number in _SHARED}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, _: FrameType | None) -> None:
    """Do nothing. A signal that is ignored would stay ignored in executed programs."""
