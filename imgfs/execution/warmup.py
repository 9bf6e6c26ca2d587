"""Builds the documents of a start once, in the fork server, so that its children find the results in memory.

Decoders, compiled patterns and the host's seccomp profile are created on first use. That took 3 ms of each start. A
child inherits what was created before the fork.
"""

from __future__ import annotations

import json
from contextlib import suppress

from imgfs.errors import ImgfsError
from imgfs.execution.bundle.process import Process, parse_process
from imgfs.execution.bundle.seccomp import filter_of
from imgfs.execution.bundle.spec import CAPABILITIES, SpecSettings, runtime_spec
from imgfs.execution.bundle.users import resolve_user
from imgfs.execution.launch import Job, decode_job
from imgfs.execution.records.record import (
    Container,
    ContainerStatus,
    InstalledRuntime,
    decode_container,
    decode_status,
    encode,
)
from imgfs.execution.start import check_platform
from imgfs.oci.platform import local_platform

_WHAT = "rehearsal"
_LINE = b"root:x:0:0:root:/root:/bin/sh\n"


def warm_up(seccomp: str) -> None:
    """Build and decode one document of each kind. `seccomp` is the argument of `filter_of`."""
    here = local_platform()
    facts = {"architecture": here.architecture, "os": here.os, "config": {}, "rootfs": {"type": "layers"}}
    with suppress(ImgfsError):  # the start of a container reports the same error to its caller
        check_platform(parse_process(json.dumps(facts).encode())[0].platform, _WHAT)
        setting = SpecSettings(id=_WHAT, key=_WHAT, rootfs="/", seccomp=filter_of(seccomp, CAPABILITIES))
        user = resolve_user("", _LINE, _LINE)
        encode(runtime_spec(Process(("true",), (), "/", user, terminal=False), setting))
    runtime = InstalledRuntime(_WHAT, "/")
    decode_container(encode(_container(runtime)), _WHAT)
    decode_status(encode(ContainerStatus(status="created")), _WHAT)
    job = Job(
        state="/",
        id=_WHAT,
        record=_WHAT,
        lock=0,
        rootfs=0,
        runtimes=[runtime],
        deadline=1.0,
        log_bytes=0,
        is_logged=False,
    )
    decode_job(*job.encode())


def _container(runtime: InstalledRuntime) -> Container:
    return Container(
        id=_WHAT,
        image=_WHAT,
        digest="",
        platform="",
        chain="",
        snapshot=_WHAT,
        created="",
        args=[],
        tty=False,
        detach=False,
        remove=False,
        runtime=runtime,
        stop_signal="",
        labels={},
        mountpoint="/",
    )
