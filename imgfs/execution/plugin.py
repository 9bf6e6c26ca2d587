"""Containers in the state directory, and the runtimes that imgfs knows by name."""

from __future__ import annotations

from imgfs.execution.containers import CONTAINERS, Containers, Keeping
from imgfs.execution.kinds import EXECUTION, RUNTIME
from imgfs.execution.options import Options, Program
from imgfs.execution.records.records import Records
from imgfs.plugins.contract import Context, Plugin


def _records(context: Context) -> Records:
    return Records(context.state)


def _containers(context: Context) -> Containers:
    return Containers(context.one(EXECUTION), context.options(Keeping).keep_deleted_days * 86400)


LOCAL = Plugin(CONTAINERS, "local", _containers, requires=(EXECUTION,), options=Keeping)
OCI = Plugin(EXECUTION, "oci", _records, options=Options)
CRUN = Plugin(RUNTIME, "crun", lambda _: Program("crun", "crun"), optional=True, exports={"program": "crun"})
RUNC = Plugin(RUNTIME, "runc", lambda _: Program("runc", "runc"), optional=True, exports={"program": "runc"})
YOUKI = Plugin(RUNTIME, "youki", lambda _: Program("youki", "youki"), optional=True, exports={"program": "youki"})
