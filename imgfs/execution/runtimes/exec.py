"""One more program in a container that runs: handed to the container's runtime, as a child of whoever asks.

It gets what the container's own process has (user, environment, directory, capabilities) but for what is asked for. A
terminal is the runtime's to move, which does it as the container's own command line does.
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
from imgfs.execution.control import open_files_max, opened
from imgfs.execution.launch import check_files
from imgfs.execution.runtimes.executable import refusal
from imgfs.execution.runtimes.runtime import OciRuntime, shell_code

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SHARED = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal sends to everybody in front: the runtime gets it too, and passes it on."""

_GIVEN_UP = 1
"""What a runtime's process ends with, by then in the container, when the kernel did not make a program of it."""


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What is to run. `env` is laid over the container's; None takes a variable away."""

    args: Sequence[str]
    terminal: bool = False
    interactive: bool = False
    cwd: str | None = None
    env: Mapping[str, str | None] | None = None


def execute(runtime: OciRuntime, id: str, spec: Mapping[str, Any], entry: ExecRequest, root: str) -> int:
    """Run it with the caller's stdout, stderr and, if it is interactive, stdin; its exit status, as shells tell it.

    `spec` is the container's config.json, `root` its root directory as processes in it see it. Signals that end this
    process are passed on. Raises RuntimeFailed, with an exit code where it was about the command itself, and Malformed;
    what the runtime has to say of that stands on stderr then. Before anything is begun, as `check_files`.
    """
    check_files()
    made = process_of(spec, entry)
    with tempfile.TemporaryDirectory(prefix="imgfs-exec-") as directory:
        process = Path(directory, "process.json")
        process.write_text(json.dumps(made))
        mine = msgspec.structs.replace(runtime, log=Path(directory, "log"))
        stdin = None if entry.interactive or entry.terminal else subprocess.DEVNULL
        with _handing_on() as begun:
            child = subprocess.Popen(mine.words("exec", "--process", str(process), id), stdin=stdin)
            begun.append(child)
            code = child.wait()
        if refusal := mine.refusal("exec", code):
            raise refusal
        if code == _GIVEN_UP and (number := _refusal(made, root)):
            return shell_code(number)
        return 128 - code if code < 0 else code


def _refusal(process: Mapping[str, Any], root: str) -> int:
    """Why the kernel did not execute it. Of one whose container has ended meanwhile there is no telling."""
    with suppress(OSError), opened(root) as directory:
        return refusal(process, directory)
    return 0


def process_of(spec: Mapping[str, Any], entry: ExecRequest) -> dict[str, Any]:
    """The OCI process (config.md, "Process"). Raises Malformed for a spec without one."""
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
    """A limit that this process can give: its own may be lower than that of who started the container."""
    if limit.get("type") != "RLIMIT_NOFILE":
        return limit
    most = open_files_max()
    return limit | {name: min(limit[name], most) for name in ("hard", "soft")}


@contextmanager
def _handing_on() -> Generator[list[subprocess.Popen[bytes]]]:
    """Pass on to the child what would end this process; it ends with the child."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if not children:
            raise SystemExit(128 + number)
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    before |= {number: signal.signal(number, _ignore) for number in _SHARED}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, _: FrameType | None) -> None:
    """A handler, because what is ignored is so in programs too."""
