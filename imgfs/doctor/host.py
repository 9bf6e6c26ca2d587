"""Checks of the host: FUSE, the kernel, what this user can mount, programs, the clock."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from imgfs.config.options import table
from imgfs.doctor.diagnosis import Diagnosis, fail, of_reason, ok, warn
from imgfs.errors import ImgfsError, Unsupported
from imgfs.execution.options import RuntimeProgram
from imgfs.execution.runtimes.choice import obstacle
from imgfs.kernel.mountapi import FilesystemContext
from imgfs.kernel.mounts import FILESYSTEM, mounts
from imgfs.kernel.probe import Capabilities

_FUSE = os.makedev(10, 229)
_SYS_ADMIN = 1 << 21
_MOUNT_API, _EROFS_FROM_FILES = (5, 2), (6, 12)
_ASK = """
import os, sys
try:
    os.statvfs(sys.argv[1])
except PermissionError:
    pass
except OSError as error:
    sys.exit(error.strerror)
"""
"""PermissionError shows that the tree answers, although this user may not enter it."""
PATIENCE = 3.0
"""Seconds in which a mounted tree must answer."""
_WRITTEN = 1_750_000_000
"""Seconds since the epoch at which this code was written. An earlier clock is wrong."""
_OTHERS = frozenset({"IMGFS_MOUNTPOINT"})
_NOT_THERE = "load the fuse module (`modprobe fuse`), or give the container the device"


def fuse_device(path: str = "/dev/fuse") -> Diagnosis:
    """Check /dev/fuse: it exists, is the right device, and can be opened."""
    try:
        facts = os.stat(path)
        if not stat.S_ISCHR(facts.st_mode) or facts.st_rdev != _FUSE:
            return fail(path, "is not the FUSE device", f"remove it and create it again: `mknod {path} c 10 229`")
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return fail(path, "is missing", _NOT_THERE)
    except OSError as error:
        return fail(path, f"cannot be opened: {os.strerror(error.errno or errno.EIO)}", "set its mode to 666")
    return ok(path, "can be opened")


def fusermount(*, is_root: bool, search: str | None = None) -> Diagnosis:
    """Check the setuid program that mounts for ordinary users. Root does not need it."""
    found = shutil.which("fusermount3", path=search)
    if found is None and is_root:
        return ok("fusermount3", "is missing; root mounts without it")
    if found is None:
        return fail("fusermount3", "is missing", "install fuse3")
    if not is_root and not os.stat(found).st_mode & stat.S_ISUID:
        return fail("fusermount3", f"{found} has no setuid bit", "reinstall fuse3, or run `chmod u+s` on it as root")
    return ok("fusermount3", f"is {found}")


def kernel(release: str) -> Diagnosis:
    """Check the version of the kernel. The mount checks show how it was built."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < _MOUNT_API:
        return warn("kernel", f"Linux {release} has no mount API of file descriptors (5.2)", "run a newer kernel")
    if version < _EROFS_FROM_FILES:
        what = f"Linux {release} cannot mount EROFS from files (6.12): images are shown through FUSE"
        return warn("kernel", what, "run a newer kernel, or accept slower reads")
    return ok("kernel", f"Linux {release}")


def mount_api() -> Diagnosis:
    """Check fsopen(2), which confined containers often forbid."""
    try:
        FilesystemContext("tmpfs", "mount API").close()
    except Unsupported as error:
        return of_reason("mount API", error.message)
    except ImgfsError:
        return ok("mount API", "is available to users that may mount")
    return ok("mount API", "is available")


def capabilities(status: str, *, is_root: bool) -> Diagnosis:
    """Check for CAP_SYS_ADMIN in `CapEff` of /proc/self/status."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if found and int(found[1], 16) & _SYS_ADMIN:
        return ok("capabilities", "CAP_SYS_ADMIN is present")
    if is_root:
        return warn(
            "capabilities",
            "root has no CAP_SYS_ADMIN here: images are shown through FUSE, and snapshots are not writable",
            "give the container CAP_SYS_ADMIN (`--cap-add SYS_ADMIN`)",
        )
    return ok("capabilities", "an ordinary user has none: images are shown through FUSE")


def user_namespaces(proc: Path = Path("/proc/sys")) -> Diagnosis:
    """Check whether user namespaces are allowed; containers of ordinary users need them."""
    for name in ("user/max_user_namespaces", "kernel/unprivileged_userns_clone"):
        try:
            if int((proc / name).read_text()) == 0:
                cure = f"`sysctl {name.replace('/', '.')}=...` if containers need user namespaces"
                return warn("user namespaces", f"are forbidden ({proc / name} is 0)", cure)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            return warn("user namespaces", f"{proc / name}: {error}", "correct it, or check that /proc is mounted")
    return ok("user namespaces", "are allowed")


def views(found: Capabilities, *, is_root: bool) -> Iterator[Diagnosis]:
    """Check what can be mounted from files of the state directory, by mounting it."""
    named = {
        "EROFS": found.erofs,
        "overlay": found.overlay,
        "overlay over EROFS": found.overlay_over_erofs,
    }
    for subject, capability in named.items():
        if capability:
            yield ok(subject, "can be mounted")
        elif is_root:
            yield of_reason(subject, capability.reason)
        else:
            yield ok(subject, "needs root; FUSE is used instead")
    if found.fuse_overlayfs:
        yield ok("fuse-overlayfs", "can be used")
    elif is_root and found.overlay:
        yield ok("fuse-overlayfs", "is missing; the kernel's overlay is used instead")
    else:
        yield of_reason("fuse-overlayfs", f"snapshots are not writable: {found.fuse_overlayfs.reason}")


def runtimes(programs: Iterable[RuntimeProgram], state: Path) -> Diagnosis:
    """Check which OCI runtimes of the plugins can run containers of `state`, and why others cannot."""
    found = {one.name: obstacle(one, state) for one in programs}
    useful = [name for name, reason in found.items() if not reason]
    if useful:
        return ok("runtimes", ", ".join(useful))
    reasons = "; ".join(reason for reason in found.values()) or "no plugin defines a runtime"
    return warn("runtimes", reasons, "install crun or runc to run containers")


def system_calls(profile: str | None) -> Diagnosis:
    """Check which profile filters the system calls of containers by default."""
    if profile is None:
        cure = "install containers-common (Debian: golang-github-containers-common) to filter them"
        return warn("seccomp", "this host has no default profile; containers may make all system calls", cure)
    return ok("seccomp", f"containers may make the system calls of {profile}")


def trees() -> Iterator[Diagnosis]:
    """Check that each mounted tree answers in time."""
    for mount in mounts():
        if mount.filesystem == FILESYSTEM:
            yield tree(mount.mountpoint)


def tree(path: str) -> Diagnosis:
    """Check a mounted tree. Another process reads it, because that process may wait forever."""
    command = [sys.executable, "-ISc", _ASK, path]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        told = process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        process.kill()  # do not wait for it: SIGKILL takes effect only when the tree answers
        return fail(path, f"does not answer within {PATIENCE:g} s", "read the log of its daemon, or restart it")
    if process.returncode:
        return fail(
            path, f"is mounted but does not answer: {told.strip()}", f"`imgfs umount {path}`, then mount it again"
        )
    return ok(path, "is mounted and answers")


def clock(now: float | None = None) -> Diagnosis:
    """Check the clock, by which certificates and tokens are verified."""
    moment = time.time() if now is None else now
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
    if moment < _WRITTEN:
        return fail(
            "clock",
            f"says {shown}, which is in the past: certificates cannot be verified",
            "set it, or run an NTP client",
        )
    return ok("clock", f"says {shown}")


def variables(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Check for environment variables that look like options but set none."""
    known = {option.variable for option in table().values()} | _OTHERS
    for name in sorted(environment):
        if name.startswith("IMGFS_") and name not in known:
            yield warn(
                f"${name}", "sets no option and is ignored", "unset it; `imgfs man imgfs.toml` lists the options"
            )
