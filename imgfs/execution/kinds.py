"""What plugins of this room are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from imgfs.execution.records import Records
from imgfs.plugins.contract import Kind


@dataclass(frozen=True, slots=True)
class Program:
    """An OCI runtime as a plugin names it: what people call it, and the program that is looked for in PATH."""

    name: str
    program: str


class Options(msgspec.Struct, frozen=True):
    """`[plugins.execution.oci]`."""

    runtime: str = ""
    """The only runtime to use: a name, or an absolute path; empty for the first that is here and takes the host."""
    log_bytes: Annotated[int, msgspec.Meta(ge=1 << 12)] = 16 << 20
    """How long a container's log becomes before it is log.1 and another one begins."""
    deadline_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    """How long a call of a runtime may take."""


EXECUTION = Kind("execution", Records)
"""Who keeps containers."""
RUNTIME = Kind("runtime", Program)
"""OCI runtimes. The first by id that is installed, and does not refuse this host, gets the containers."""
