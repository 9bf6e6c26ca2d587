"""The contestants: imgfs, skopeo + umoci, containerd, podman, and the two floors.

Each works in its own room and owns the processes that it starts there. `disks.Rooms` clears the room's mounts and
detached programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from .disks import used_bytes
from .processes import Failed, run, start, stop, wait_until
from .servers import Address

OS_RELEASE = "etc/os-release"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Settings(Protocol):
    """What a contestant needs to know: the path of the imgfs program."""

    @property
    def imgfs(self) -> Path: ...


class Contestant:
    """A tool in a fresh room. As a context manager it starts and ends its daemon, outside the measured time."""

    name: ClassVar[str]

    def __init__(self, room: Path, settings: Settings) -> None:
        self.room = room
        self.settings = settings
        self.env = {"TMPDIR": str(room / "tmp")}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the started processes."""

    def run(self, *command: str | Path) -> str:
        return run(*command, env=self.env)

    def first_cat(self, registry: Address, label: str) -> str:
        """Read the image's /etc/os-release, starting from nothing. Raises Failed."""
        raise NotImplementedError

    def pull(self, registry: Address, label: str) -> float | None:
        """Make the whole image present. Return the seconds if the contestant measures them itself. Raises Failed."""
        raise NotImplementedError

    def disk(self) -> int:
        """Return the bytes on disk of the pulled image."""
        return used_bytes(self.room)


class Imgfs(Contestant):
    """The mount, measured from a started daemon with an empty state."""

    name = "imgfs"
    config: ClassVar[str] = ""
    """The content of its configuration file."""

    def __init__(self, room: Path, settings: Settings) -> None:
        super().__init__(room, settings)
        self.mountpoint, self.state = room / "mnt", room / "state"
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self.unmount()

    def mount(self) -> float:
        """Start the daemon, and return the seconds until the mount answers."""
        self.mountpoint.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        (self.state / "imgfs.toml").write_text(self.config)
        begin = time.perf_counter()
        self.imgfs("mount", self.mountpoint, "--state", self.state)
        self.start_seconds = time.perf_counter() - begin
        return self.start_seconds

    def unmount(self) -> None:
        self.imgfs("umount", self.mountpoint)

    def imgfs(self, *words: str | Path) -> str:
        return self.run(self.settings.imgfs, *words)

    def image(self, registry: Address, label: str) -> Path:
        return self.mountpoint / "images" / registry.host / label

    def rootfs(self, registry: Address, label: str) -> Path:
        """Return the target of the image's rootfs link."""
        return (self.image(registry, label) / "rootfs").resolve()

    def first_cat(self, registry: Address, label: str) -> str:
        return self.run("cat", self.image(registry, label) / "rootfs" / OS_RELEASE)

    def pull(self, registry: Address, label: str) -> float | None:
        self.imgfs("pull", "--mountpoint", self.mountpoint, f"{registry.host}/{label}")

    def run_true(self, registry: Address, label: str, id: str) -> None:
        """Run `true` in a container and remove the container. Raises Failed."""
        where = ("--mountpoint", self.mountpoint)
        self.imgfs("run", *where, "--rm", "--name", id, f"{registry.host}/{label}", "true")

    def filter(self, registry: Address, label: str) -> Any:
        """Return the seccomp filter of a container's runtime bundle, if the bundle has one. Raises Failed."""
        where, container = ("--mountpoint", self.mountpoint), self.mountpoint / "containers/filter"
        self.imgfs("run", *where, "--name", container.name, f"{registry.host}/{label}", "true")
        config = json.loads((container / "config.json").read_text())
        container.rmdir()
        return config["linux"].get("seccomp")

    def disk(self) -> int:
        return used_bytes(self.state)

    def pid(self) -> int:
        return json.loads((self.mountpoint / ".imgfs/state.json").read_text())["pid"]

    def memory_bytes(self, what: str = "VmRSS") -> int:
        """Return the daemon's memory now (VmRSS) or its peak (VmHWM)."""
        status = Path(f"/proc/{self.pid()}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(what))
        return int(line.split()[1]) * 1024


class ImgfsInFuse(Imgfs):
    """The mount when only FUSE shows a rootfs, as for users without root rights."""

    config = 'views = "fuse"\n'


class ShellFloor(Contestant):
    """The least cost with tools: curl, sha256sum, igzip or zstd, tar, all layers at once; then cat in a chroot."""

    name = "floor"
    # tee -p: tar may exit before the padding after the archive, and the checksum needs the padding too.
    _LAYER = """\
set -o pipefail
sums=$( {{
  curl -sSf "$1" | tee -p >(sha256sum >&3) | {inflate} | tee -p >(sha256sum >&3) | tar -xf - -C "$2" >&2
}} 3>&1 )
[ $? -eq 0 ] && echo "$sums"
"""

    def first_cat(self, registry: Address, label: str) -> str:
        self._unpack(registry, label)
        return self.run("chroot", self.room / "root", "cat", f"/{OS_RELEASE}")

    def _unpack(self, registry: Address, label: str) -> None:
        """Fetch config and layers at once, and check every promised digest."""
        name, _, tag = label.partition(":")
        url, root = f"http://{registry.host}/v2/{name}", self.room / "root"
        root.mkdir()
        manifest = json.loads(self.run("curl", "-sSf", "-H", f"Accept: {_MANIFEST}", f"{url}/manifests/{tag}"))
        config = self._begin("curl", "-sSf", f"{url}/blobs/{manifest['config']['digest']}")
        layers = [self._begin(*self._layer(url, root, layer)) for layer in manifest["layers"]]
        sums = "".join(self._end(layer) for layer in layers)
        promised = [layer["digest"] for layer in manifest["layers"]] + json.loads(self._end(config))["rootfs"][
            "diff_ids"
        ]
        if missing := [digest for digest in promised if digest.removeprefix("sha256:") not in sums]:
            raise Failed(f"floor: these digests are not those of the bytes: {missing}")

    def _layer(self, url: str, root: Path, layer: dict[str, str]) -> tuple[str, ...]:
        inflate = "zstd -dc" if layer["mediaType"].endswith("zstd") else "igzip -dc"
        return "bash", "-c", self._LAYER.format(inflate=inflate), "layer", f"{url}/blobs/{layer['digest']}", str(root)

    def _begin(self, *command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **self.env})

    def _end(self, child: subprocess.Popen[str]) -> str:
        output, complaint = child.communicate()
        if child.returncode:
            raise Failed(f"floor: {str(child.args)[-100:]}: exit status {child.returncode}; {complaint.strip()}")
        return output


class ThreadPipeline(Contestant):
    """The least cost in Python, see `floor`."""

    name = "pipeline"

    def pull(self, registry: Address, label: str) -> float:
        name, _, tag = label.partition(":")
        target = self.room / "layers"
        target.mkdir()
        return float(self.run(sys.executable, "-m", "benchmarks.floor", registry.host, name, tag, target))

    def disk(self) -> int:
        return used_bytes(self.room / "layers")


class SkopeoUmoci(Contestant):
    """No daemon: skopeo copies to an OCI layout, umoci unpacks the layout."""

    name = "skopeo + umoci"

    def first_cat(self, registry: Address, label: str) -> str:
        self.pull(registry, label)
        return self.run("chroot", self.room / "bundle/rootfs", "cat", f"/{OS_RELEASE}")

    def pull(self, registry: Address, label: str) -> None:
        source, target = f"docker://{registry.host}/{label}", f"{self.room}/layout:image"
        self.run("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", source, f"oci:{target}")
        self.run("umoci", "unpack", "--image", target, self.room / "bundle")

    def disk(self) -> int:
        return used_bytes(self.room / "layout", self.room / "bundle")


class Containerd(Contestant):
    """A private containerd, controlled by ctr: overlayfs snapshots, runc."""

    name = "ctr"
    _CONFIG = """\
version = 2
root = "{room}/root"
state = "{room}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{room}/socket"
"""

    def __enter__(self) -> Self:
        config, log = self.room / "config.toml", self.room / "log"
        config.write_text(self._CONFIG.format(room=self.room))
        self._daemon = start("containerd", "-c", config, log=log, env=self.env)
        wait_until(self._answers, "containerd", self._daemon, log)
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._daemon)

    def _answers(self) -> bool:
        try:
            self._ctr("version")
        except Failed:
            return False
        return True

    def _ctr(self, *words: str) -> str:
        return self.run("ctr", "--address", self.room / "socket", *words)

    def first_cat(self, registry: Address, label: str) -> str:
        self.pull(registry, label)
        return self._ctr("run", "--rm", f"{registry.host}/{label}", "bench", "cat", f"/{OS_RELEASE}")

    def run_true(self, registry: Address, label: str, id: str) -> None:
        """See Imgfs.run_true."""
        self._ctr("run", "--rm", f"{registry.host}/{label}", id, "true")

    def pull(self, registry: Address, label: str) -> None:
        self._ctr("images", "pull", "--plain-http", f"{registry.host}/{label}")

    def disk(self) -> int:
        return used_bytes(self.room / "root")


class Podman(Contestant):
    """No daemon: private storage, overlay driver, runc (crun refuses hybrid cgroups), no network, explicit limits."""

    name = "podman"

    def __enter__(self) -> Self:
        self._podman("info")  # creates the database and directories, which an installed podman already has
        return self

    def _podman(self, *words: str) -> str:
        places = (
            "--root",
            str(self.room / "root"),
            "--runroot",
            str(self.room / "run"),
            "--tmpdir",
            str(self.room / "lib"),
        )
        kinds = (
            "--storage-driver",
            "overlay",
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "none",
        )
        return self.run("podman", *places, *kinds, *words)

    def first_cat(self, registry: Address, label: str) -> str:
        return self._run_rm(registry, label, "cat", f"/{OS_RELEASE}")

    def run_true(self, registry: Address, label: str, id: str) -> None:
        """See Imgfs.run_true."""
        self._run_rm(registry, label, "true", name=id)

    def _run_rm(self, registry: Address, label: str, *command: str, name: str = "bench") -> str:
        # Podman's own limits are higher than a process without CAP_SYS_RESOURCE may set.
        limits = (
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
            "--network",
            "none",
            "--cgroupns",
            "host",
        )
        image = f"{registry.host}/{label}"
        words = ("run", "--rm", "--quiet", "--name", name, "--tls-verify=false", *limits, image, *command)
        return self._podman(*words)

    def pull(self, registry: Address, label: str) -> None:
        self._podman("pull", "--quiet", "--tls-verify=false", f"{registry.host}/{label}")

    def disk(self) -> int:
        return used_bytes(self.room / "root")


FIRST_CAT = (ShellFloor, Imgfs, SkopeoUmoci, Containerd, Podman)
PULL = (ThreadPipeline, Imgfs, SkopeoUmoci, Containerd, Podman)
PEERS = (SkopeoUmoci.name, Containerd.name, Podman.name)
