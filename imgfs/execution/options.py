"""The options of the execution plugin, shared by the daemon and the command line."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class RuntimeProgram(msgspec.Struct, frozen=True):
    """An OCI runtime: its name in the configuration, and the program to find in PATH."""

    name: str
    program: str


class ExecutionOptions(msgspec.Struct, frozen=True):
    """`[plugins.execution.oci]`."""

    runtime: Annotated[
        str,
        Meta(
            description="The only runtime to use, by name or absolute path. Empty: the first installed one that "
            "accepts this host."
        ),
    ] = ""
    log_bytes: Annotated[
        int,
        Meta(
            ge=1 << 12,
            le=1 << 40,
            description="Bytes after which a container's log is renamed to log.1 and started again.",
        ),
    ] = 16 << 20
    deadline_seconds: Annotated[
        float, Meta(ge=0.1, le=3600, description="Seconds that a call of a runtime may take.")
    ] = 60.0
    seccomp: Annotated[
        str,
        Meta(
            pattern="^(default|none|/.*)$",
            description="The system calls that containers may make: those of this host's profile, if it has one "
            "(default), all (none), or those of the profile at an absolute path.",
        ),
    ] = "default"
