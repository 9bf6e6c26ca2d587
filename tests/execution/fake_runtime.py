#!/usr/bin/env python3
"""A runtime without isolation, with the command line of the real runtimes: for tests of the code that calls a runtime.

`quirks.json` beside it sets what a command does instead of its work: {"run": "hang"}, "refuse", "silent", "crash",
"late" (the command does its work and then hangs).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def main(words: list[str]) -> None:
    options: dict[str, str] = {}
    while words and words[0].startswith("--"):
        options[words[0]] = words[1]
        words = words[2:]
    command, *rest = words
    flags = [word for word in rest if word in ("--force", "--all", "--detach")]
    rest = [word for word in rest if word not in flags]
    while rest[0].startswith("--"):
        options[rest[0]] = rest[1]
        rest = rest[2:]
    note_call(command, rest)
    late = quirk(command, options)
    place = Path(options["--root"]) / rest[0]
    if command == "run":
        begin(place, options)
        if late:
            time.sleep(1000)
    elif command == "kill":
        os.kill(int((place / "pid").read_text()), int(rest[1]))
    elif command == "delete":
        delete(place, force="--force" in flags)


def note_call(command: str, rest: list[str]) -> None:
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write(f"{command} {rest[0]}\n")


def quirk(command: str, options: dict[str, str]) -> bool:
    path = Path(__file__).with_name("quirks.json")
    quirks = json.loads(path.read_text()) if path.exists() else {}
    what = quirks.get(command)
    if what == "late":
        return True
    if what == "hang":
        time.sleep(1000)
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "silent":
        sys.exit(3)
    elif what:
        say(options, what)
        sys.exit(1)
    return False


def say(options: dict[str, str], message: str) -> None:
    with open(options["--log"], "a") as log:
        log.write(json.dumps({"level": "error", "msg": message, "time": "now"}) + "\n")
    print(message, file=sys.stderr)


def begin(place: Path, options: dict[str, str]) -> None:
    process = json.loads((Path(options["--bundle"]) / "config.json").read_text())["process"]
    program = shutil.which(process["args"][0])
    if program is None:
        say(options, f'exec: "{process["args"][0]}": executable file not found in $PATH')
        sys.exit(1)
    place.mkdir()
    pid = os.fork()
    if not pid:
        os.setsid()
        variables = dict(one.split("=", 1) for one in process["env"])
        os.execve(program, process["args"], variables)
    (place / "pid").write_text(str(pid))
    Path(options["--pid-file"]).write_text(str(pid))


def delete(place: Path, *, force: bool) -> None:
    if not place.exists():
        sys.exit(0 if force else 1)
    if force:
        with suppress(OSError):
            os.kill(int((place / "pid").read_text()), signal.SIGKILL)
    shutil.rmtree(place)


main(sys.argv[1:])
