"""Processes in private mount namespaces: the daemon mounts views and writable snapshots there too."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.kernel.mounts import MountEntry, mounts
from tests.mount.kernel_views import chain_of, prepare, shown_at
from tests.mount.scene import CONFIG, PATIENCE, Scene, error_of, refused, serving, small, until


class Elsewhere:
    """A shell in another mount namespace that runs one command at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The shell's process."""
        return self._process.pid

    def run(self, command: str) -> tuple[int, str]:
        """Run a line of shell in the shell itself; return the exit code, and stdout and stderr together."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{{ {command}; }} 2>&1; code=$?; echo; echo =$code\n")
        self._process.stdin.flush()
        lines: list[str] = []
        while not (line := self._process.stdout.readline()).startswith("="):
            assert line, "the shell has ended"
            lines.append(line)
        return int(line[1:]), "".join(lines).removesuffix("\n")

    def mounted(self, path: Path) -> list[MountEntry]:
        """What the shell sees mounted at a path."""
        return [one for one in mounts(self.pid) if one.mountpoint == str(path)]

    def kinds(self, path: Path) -> list[str]:
        """The filesystems that the shell sees mounted at a path."""
        return [one.filesystem for one in self.mounted(path)]


@contextmanager
def elsewhere(*words: str) -> Generator[Elsewhere]:
    """A shell in a mount namespace to which later mounts are not propagated."""
    command = ["unshare", *words, "--mount", "--propagation", "private", "sh"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        shell = Elsewhere(process)
        try:
            shell.run("true")
            yield shell
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(PATIENCE)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with serving(tmp_path) as scene:
        yield scene


def pulled(scene: Scene, mark: str) -> Path:
    """The name of an image that is here, layers and all."""
    name = scene.serve(small(mark), mark)
    (name / "pull").read_bytes()
    return name


@pytest.mark.parametrize("is_used", [True, False])
def test_an_image_is_mounted_there_by_the_kernel(scene: Scene, is_used: bool) -> None:
    name = pulled(scene, "view")
    rootfs = chain_of(scene, small("view")) / "rootfs"
    with elsewhere() as shell:
        if is_used:
            os.listdir(f"{name}/rootfs/")
        assert shell.run(f"cat {name}/rootfs/mark") == (0, "view/0\n")
        assert shell.kinds(rootfs) == ["erofs"]
        assert shown_at(scene.mount, rootfs.parent) == ["erofs"]
        assert shell.run(f"test -w {name}/rootfs/mark")[0] == 1


def test_the_path_of_a_chain_leads_into_the_mount_there(scene: Scene) -> None:
    pulled(scene, "chain")
    rootfs = chain_of(scene, small("chain")) / "rootfs"
    with elsewhere() as shell:
        assert (rootfs / "mark").read_text() == "chain/0\n"
        assert shell.run(f"cat {rootfs}/mark") == (0, "chain/0\n")
        assert shell.kinds(rootfs) == ["erofs"]


@pytest.mark.parametrize("is_used", [True, False])
def test_what_is_written_there_is_seen_here(scene: Scene, is_used: bool) -> None:
    pulled(scene, "active")
    rootfs = prepare(scene, "active", chain_of(scene, small("active")).name) / "rootfs"
    with elsewhere() as shell:
        if is_used:
            (rootfs / "here").write_text("here\n")
        assert shell.run(f"echo there > {rootfs}/there")[0] == 0
        assert (rootfs / "there").read_text() == "there\n"
        (rootfs / "later").write_text("later\n")
        assert shell.run(f"cat {rootfs}/later") == (0, "later\n")
        assert shell.kinds(rootfs) == ["overlay"]


def test_a_snapshot_that_is_mounted_there_is_committed_and_removed(scene: Scene) -> None:
    pulled(scene, "commit")
    directory = prepare(scene, "commit", chain_of(scene, small("commit")).name)
    with elsewhere() as shell:
        assert shell.run(f"echo new > {directory}/rootfs/new")[0] == 0
        assert shell.run(f"cd {directory}/rootfs")[0] == 0
        with refused(errno.EBUSY):
            directory.rename(scene.mount.snapshots / "done")
        assert shell.run("cd /")[0] == 0
        directory.rename(scene.mount.snapshots / "done")
        assert shell.kinds(directory / "rootfs") == []
        done = scene.mount.snapshots / "done"
        assert shell.run(f"cat {done}/rootfs/new") == (0, "new\n")
        assert shell.kinds(done / "rootfs") == ["overlay"]
        assert shell.run(f"rmdir {done}") == (0, "")
        assert shell.kinds(done / "rootfs") == []


def test_the_root_directory_of_a_process_is_respected(scene: Scene, tmp_path: Path) -> None:
    """The process has another root directory, where the tree is at another path."""
    pulled(scene, "root")
    rootfs = prepare(scene, "root", chain_of(scene, small("root")).name) / "rootfs"
    inner = tmp_path / "inner"
    inner.mkdir()
    shutil.copy("/bin/busybox", inner / "busybox")
    (inner / "tree").mkdir()
    relative = rootfs.relative_to(scene.mount.path)
    with elsewhere() as shell:
        assert shell.run(f"mount --rbind {scene.mount.path} {inner}/tree")[0] == 0
        words = f"/busybox touch /tree/{relative}/made; /busybox cat /tree/{relative}/mark"
        command = f"chroot {inner} /busybox sh -c '{words}'"
        assert shell.run(command) == (0, "root/0\n")
        assert (rootfs / "made").exists()


def test_unused_mounts_there_go_after_a_while(tmp_path: Path) -> None:
    with serving(tmp_path, f"{CONFIG}view_idle_seconds = 1\n") as scene:
        pulled(scene, "idle")
        snapshot = chain_of(scene, small("idle"))
        active = prepare(scene, "idle", snapshot.name)
        with elsewhere() as shell:
            for directory in (snapshot, active):
                assert shell.run(f"cat {directory}/rootfs/mark") == (0, "idle/0\n")
            until(lambda: not shell.kinds(snapshot / "rootfs") and not shell.kinds(active / "rootfs"))
            until(lambda: not shown_at(scene.mount, snapshot) and not shown_at(scene.mount, active))
            assert shell.run(f"cat {active}/rootfs/mark") == (0, "idle/0\n")


def test_the_daemon_ends_while_a_process_is_in_a_mount_there(scene: Scene) -> None:
    pulled(scene, "end")
    active = prepare(scene, "end", chain_of(scene, small("end")).name)
    with elsewhere() as shell:
        assert shell.run(f"cd {active}/rootfs && cat mark") == (0, "end/0\n")
        scene.mount.stop()
        assert shell.kinds(active / "rootfs") == []
        shell.run("cd /")
        scene.mount.start()
        assert (active / "rootfs/mark").read_text() == "end/0\n"


def test_where_the_namespace_has_another_owner_the_sentence_stays(scene: Scene) -> None:
    name = pulled(scene, "owner")
    snapshot = chain_of(scene, small("owner"))
    directory = prepare(scene, "owner", snapshot.name)
    with elsewhere("--user", "--map-root-user") as shell:
        assert shell.run(f"cat {name}/rootfs/mark") == (0, "owner/0\n")
        assert shell.kinds(snapshot / "rootfs") == []
        code, text = shell.run(f"ls {directory}/rootfs")
        assert code != 0
        assert "Operation not permitted" in text
        assert "rslave" in error_of(directory)
        assert shell.kinds(directory / "rootfs") == []
