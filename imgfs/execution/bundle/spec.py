"""Builds the OCI runtime spec of a container, config.json (runtime-spec, config.md and config-linux.md). Pure.

Capabilities, masked and read-only paths, and device rules are containerd's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from imgfs.execution.bundle.overrides import Network, Volume
from imgfs.execution.bundle.process import HOST_NAME_MAX, Process
from imgfs.execution.cgroups import cgroup_name

OCI_VERSION = "1.0.2"
Json = dict[str, Any]
CAPABILITIES = [
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID"),
    *("CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL"),
    "CAP_AUDIT_WRITE",
]
_MASKED = [
    *(f"/proc/{name}" for name in ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats")),
    *("/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"),
]
_READ_ONLY = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")]
OPEN_FILES = 1024
"""Limit of open files in a container.

A caller with a lower limit passes that on, because not every caller may raise it.
"""
_UMASK = 0o022


class SpecSettings(msgspec.Struct, frozen=True):
    """Where and with what a process runs."""

    id: str
    key: str
    """The key of its snapshot."""
    rootfs: str
    """An absolute path of the host."""
    read_only: bool = False
    network: Network = "none"
    volumes: tuple[Volume, ...] = ()
    host_files: tuple[str, ...] = ()
    """Files of the host that a container in the host's network needs to resolve names."""
    memory: int | None = None
    open_files: int = OPEN_FILES
    labels: Mapping[str, str] | None = None
    seccomp: Json | None = None
    """The filter of system calls (seccomp.py), or None."""

    @property
    def hostname(self) -> str:
        """The container's host name."""
        return self.id[:HOST_NAME_MAX]

    @property
    def cgroup(self) -> str:
        """Its cgroup, at the root of each hierarchy, so that it does not end with a cgroup of another owner."""
        return f"/{cgroup_name(self.key)}"


def runtime_spec(process: Process, setting: SpecSettings) -> Json:
    """Return config.json."""
    return {
        "ociVersion": OCI_VERSION,
        "process": _process(process, setting.open_files),
        "root": {"path": setting.rootfs, "readonly": setting.read_only},
        "hostname": setting.hostname,
        "mounts": [*_mounts(setting), *(_volume(one) for one in setting.volumes)],
        "annotations": dict(setting.labels or {}),
        "linux": {
            "namespaces": [{"type": name} for name in _namespaces(setting.network)],
            "resources": _resources(setting.memory),
            "cgroupsPath": setting.cgroup,
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
            **({} if setting.seccomp is None else {"seccomp": setting.seccomp}),
        },
    }


def _process(process: Process, open_files: int) -> Json:
    user = process.user
    return {
        "terminal": process.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups), "umask": _UMASK},
        "args": list(process.args),
        "env": list(process.env),
        "cwd": process.cwd,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files}],
        "noNewPrivileges": False,
        "oomScoreAdj": 0,
    }


def _namespaces(network: Network) -> list[str]:
    return ["pid", "ipc", "uts", "mount", *(["network"] if network == "none" else [])]


def _resources(memory: int | None) -> Json:
    devices: Json = {"devices": [{"allow": False, "access": "rwm"}]}
    return devices if memory is None else devices | {"memory": {"limit": memory}}


def _mounts(setting: SpecSettings) -> list[Json]:
    def made(destination: str, kind: str, *options: str, source: str | None = None) -> Json:
        return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}

    plain = ("nosuid", "noexec", "nodev")
    return [
        made("/proc", "proc", *plain),
        made("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        made("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        made("/dev/shm", "tmpfs", *plain, "mode=1777", "size=65536k", source="shm"),
        made("/dev/mqueue", "mqueue", *plain),
        made("/sys", "sysfs", *plain, "ro"),
        made("/sys/fs/cgroup", "cgroup", *plain, "relatime", "ro"),
        *(_volume(Volume(path, path, read_only=True)) for path in setting.host_files),
    ]


def _volume(volume: Volume) -> Json:
    mode = "ro" if volume.read_only else "rw"
    return {
        "destination": volume.destination,
        "type": "bind",
        "source": volume.source,
        "options": ["rbind", "rprivate", mode],
    }
