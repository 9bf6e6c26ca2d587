"""The kinds of this room and its built-in plugins: containers of the state directory, and the known OCI runtimes."""

from __future__ import annotations

from imgfs.execution.containers import Containers, ContainersOptions
from imgfs.execution.options import ExecutionOptions, RuntimeProgram
from imgfs.execution.records.records import ContainerRecords
from imgfs.execution.runtimes.choice import obstacle
from imgfs.plugins.contract import Context, Kind, Plugin

CONTAINERS = Kind("containers", Containers)
"""Reads the containers of the state directory and deletes them."""
EXECUTION = Kind("execution", ContainerRecords)
"""Stores the records of containers."""
RUNTIME = Kind("runtime", RuntimeProgram, obstacle)
"""OCI runtimes. Containers run with the first one by plugin ID that is installed and does not refuse this host.

Commands start containers outside the daemon. They read the name of the program from the export `program`.
"""


def _containers(context: Context) -> Containers:
    return Containers(context.one(EXECUTION), context.options(ContainersOptions).keep_deleted_days * 86400)


LOCAL = Plugin(CONTAINERS, "local", _containers, requires=(EXECUTION,), options=ContainersOptions)
OCI = Plugin(EXECUTION, "oci", lambda context: ContainerRecords(context.state), options=ExecutionOptions)
CRUN = Plugin(RUNTIME, "crun", lambda _: RuntimeProgram("crun", "crun"), optional=True, exports={"program": "crun"})
RUNC = Plugin(RUNTIME, "runc", lambda _: RuntimeProgram("runc", "runc"), optional=True, exports={"program": "runc"})
YOUKI = Plugin(
    RUNTIME, "youki", lambda _: RuntimeProgram("youki", "youki"), optional=True, exports={"program": "youki"}
)
