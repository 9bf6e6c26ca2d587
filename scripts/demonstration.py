"""The demo behind scripts/demo: an embedded registry, a small image made on the spot, a mount, and the main job.

Every command is shown as it is run, and after it what the registry was asked for. State, mount and registry live in a
temporary directory and on loopback, and are gone at the end, also after Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from imgfs.testing.images import busybox_image
from imgfs.testing.registry import FakeRegistry

IMGFS = Path(sys.executable).with_name("imgfs")
RUNTIMES = ("crun", "runc", "youki")
"""What runs containers; the demo installs none."""


class Stage:
    """Runs commands before the reader's eyes and counts what each costs at the registry."""

    def __init__(self, directory: Path, registry: FakeRegistry) -> None:
        self._registry = registry
        self._seen = 0
        bin_directory = str(Path(sys.executable).parent)
        self._environment = os.environ | {
            "PATH": f"{bin_directory}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "IMGFS_MOUNTPOINT": str(directory / "mnt"),
            "LC_ALL": "C.UTF-8",
        }
        self._directory = directory

    def say(self, text: str) -> None:
        """A sentence of the story."""
        print(f"\n# {text}", flush=True)

    def run(self, command: str, *, may_fail: bool = False) -> None:
        """Show and run one shell command in the demo's directory."""
        print(f"$ {command}", flush=True)
        done = subprocess.run(["sh", "-c", command], cwd=self._directory, env=self._environment, check=False)
        self._tell_requests()
        if done.returncode and not may_fail:
            raise SystemExit(f"demo: {command!r} ended with {done.returncode}; see {self._directory}")

    def _tell_requests(self) -> None:
        asked = self._registry.log[self._seen :]
        self._seen = len(self._registry.log)
        if not asked:
            print("  (the registry was not asked)", flush=True)
        for request in asked:
            short = request.path.replace("sha256:", "")
            print(f"  (the registry was asked: {request.method} {short[:60]}: {request.sent} bytes)", flush=True)


def tell(stage: Stage, registry: FakeRegistry) -> None:
    """The story."""
    name = f"images/{registry.host}/demo/busybox:1"
    stage.say("Mount: images/, content/ and snapshots/ below one directory. Nothing is here yet.")
    stage.run("imgfs mount mnt --state state && ls mnt mnt/images mnt/content")
    stage.say("Looking a name up asks the registry once: the manifest comes, no layer.")
    stage.run(f"ls -l mnt/{name}")
    stage.run(f"ls -l mnt/{name}/")
    stage.say("Nothing that only looks around costs a request.")
    stage.run("find mnt/images | wc -l; du -s mnt/images; ls -l mnt/content")
    stage.say("Reading one file brings the rootfs in, every byte verified; nothing is unpacked.")
    stage.run(f"cat mnt/{name}/rootfs/etc/os-release")
    stage.say("Now it is here, for every tool that reads files.")
    stage.run(f"ls -l mnt/{name}/rootfs/ && find mnt/{name}/rootfs/etc -type f | xargs wc -c")
    stage.run(f"cat mnt/{name}/status")
    stage.run("imgfs ls")
    enter(stage, name)
    if os.geteuid() == 0:
        write(stage, f"{registry.host}/demo/busybox:1")
        if any(map(shutil.which, RUNTIMES)):
            contain(stage, f"{registry.host}/demo/busybox:1")
    stage.say("Without the daemon's memory: unmount, mount again, read. The state directory has it all.")
    stage.run("imgfs umount mnt && imgfs mount mnt --state state")
    stage.run(f"cat mnt/{name}/rootfs/etc/os-release | head -n 1; du -sh state | cut -f 1")
    stage.say("A blob is a file; removing it deletes it here, reading it fetches it again.")
    stage.run(f"sha256sum mnt/{name}/layers/0 && rm mnt/content/$(basename $(readlink mnt/{name}/layers/0))")
    stage.say("A failure is an errno for programs and a sentence for people (also in the xattr user.imgfs.error).")
    stage.run(f"cat mnt/images/{registry.host}/demo/nothing:1", may_fail=True)
    stage.run(f"imgfs pull {registry.host}/demo/nothing:1", may_fail=True)


def enter(stage: Stage, name: str) -> None:
    """chroot into the view; an ordinary user does it in a namespace of their own, where the host allows that."""
    is_root = os.geteuid() == 0
    enter = "chroot" if is_root else "unshare --user --map-root-user chroot"
    stage.say("The rootfs is a filesystem: programs run on it.")
    stage.run(
        f"{enter} mnt/{name}/rootfs /bin/sh -c '. /etc/os-release; echo Hello from $(pwd) of $ID; ls -l /bin/cat'",
        may_fail=not is_root,
    )


def write(stage: Stage, image: str) -> None:
    """A writable snapshot: prepared, written to, committed, exported. An ordinary user needs more for it (README)."""
    stage.say("To write, prepare a snapshot on top of the image: nothing is copied, an overlay is laid over it.")
    stage.run(f"imgfs snapshot prepare web {image}")
    stage.run(
        "chroot mnt/snapshots/active/web/rootfs /bin/sh -c 'mkdir -p /srv; echo Hello > /srv/index; rm /etc/os-release'"
    )
    stage.say("Its changes alone are its layer; committed, it is a snapshot for good, and others can lie on it.")
    stage.run("imgfs snapshot commit web site && imgfs snapshot prepare next site >/dev/null && imgfs snapshot ls")
    stage.run("imgfs snapshot export site | tar t; cat mnt/snapshots/active/next/rootfs/srv/index")
    stage.run("imgfs snapshot rm site", may_fail=True)
    stage.run("imgfs snapshot rm active/next site")


def contain(stage: Stage, image: str) -> None:
    """A container: run, looked at, entered, ended, deleted. Root's, where an OCI runtime is installed."""
    stage.say("A container is a process on such a snapshot, and a directory that tells of it.")
    stage.run(f"imgfs run -d --name web {image} sh -c 'trap \"exit 3\" TERM; echo up; while :; do sleep 0.1; done'")
    stage.run("imgfs ps; cat mnt/containers/web/status; ls mnt/containers/web; ls mnt/containers/web/rootfs/")
    stage.run("imgfs exec web sh -c 'echo Hello from $(hostname) > /srv.txt'; cat mnt/containers/web/rootfs/srv.txt")
    stage.run("rmdir mnt/containers/web", may_fail=True)
    stage.say("Deleted once it has ended, with its snapshot; how it ended is kept.")
    stage.run("imgfs kill web; imgfs wait web; imgfs logs web; imgfs ps -a")
    stage.run("rmdir mnt/containers/web; grep exit_code mnt/.imgfs/deleted/containers/web; ls mnt/snapshots/active")


def main() -> None:
    """Set the stage, tell, and clear up."""
    with tempfile.TemporaryDirectory(prefix="imgfs-demo-") as name, FakeRegistry() as registry:
        directory = Path(name)
        busybox_image().add_to(registry, "demo/busybox", "1")
        print(f"# An embedded registry with one small image answers at {registry.host}.")
        try:
            tell(Stage(directory, registry), registry)
        finally:
            print("\n# The end: unmount, and remove everything.", flush=True)
            subprocess.run([IMGFS, "umount", directory / "mnt"], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
