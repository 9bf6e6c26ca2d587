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
            description="The only runtime to use, a name or an absolute path; empty for the first here that takes "
            "this host."
        ),
    ] = ""
    log_bytes: Annotated[
        int,
        Meta(
            ge=1 << 12, le=1 << 40, description="How long a container's log becomes before it is log.1 and begins anew."
        ),
    ] = 16 << 20
    deadline_seconds: Annotated[float, Meta(ge=0.1, le=3600, description="How long a call of a runtime may take.")] = (
        60.0
    )
    seccomp: Annotated[
        str,
        Meta(
            pattern="^(default|none|/.*)$",
            description="Which system calls containers may make: those of the profile of this host, if it has one "
            "(default), all (none), or those of the profile at an absolute path.",
        ),
    ] = "default"
