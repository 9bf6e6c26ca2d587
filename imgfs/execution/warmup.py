"""Doing what every start does with its documents once, for nobody, in a process whose children start containers.

Decoders, compiled patterns and the host's seccomp profile are made the first time that they are needed, and that took
3 ms of each start; what is in memory before a fork is there in the child.
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
    """`seccomp` is what containers are to have for their filter, as `filter_of` wants it."""
    here = local_platform()
    facts = {"architecture": here.architecture, "os": here.os, "config": {}, "rootfs": {"type": "layers"}}
    with suppress(ImgfsError):  # whatever it is, who starts a container is told
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
