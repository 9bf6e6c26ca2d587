"""Programs that separate paths by colons, and programs that make containers, take the colon-free path of a rootfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.testing.build import AMD64, image, layer
from imgfs.testing.entries import Dir, File
from tests.mount.scene import Scene, serving
from tests.support.mounted import Mounted

GREETING = "Guten Tag"
LIBRARY = f'const char *greeting(void) {{ return "{GREETING}"; }}'
PROGRAM = "#include <stdio.h>\nconst char *greeting(void);\nint main(void) { puts(greeting()); return 0; }"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("tools")) as made:
        yield made


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs libgreet.so, which is beside it."""
    work = tmp_path_factory.mktemp("build")
    (work / "greet.c").write_text(LIBRARY)
    (work / "main.c").write_text(PROGRAM)
    _do("gcc", "-shared", "-fPIC", "-o", work / "libgreet.so", work / "greet.c")
    _do("gcc", "-o", work / "main", work / "main.c", f"-L{work}", "-lgreet")
    return work / "main"


@pytest.fixture(scope="module")
def rootfs(scene: Scene, program: Path) -> Path:
    """The colon-free path of an image's rootfs, as `imgfs snapshot path` prints it."""
    busybox = Path("/bin/busybox").read_bytes()
    entries = [
        *(Dir(name) for name in ("bin", "dev", "etc", "lib", "proc", "run", "sys", "tmp", "usr", "var")),
        File("bin/busybox", busybox, mode=0o755),
        File("etc/os-release", b"ID=greeting\n"),
        File("lib/libgreet.so", program.with_name("libgreet.so").read_bytes(), mode=0o755),
    ]
    name = scene.serve(image([layer(entries)], platform=AMD64), "tools")
    return _printed(scene.mount, "snapshot", "path", str(name.relative_to(scene.images)))


def _printed(mount: Mounted, *arguments: str) -> Path:
    path = Path(mount.run(*arguments).stdout.strip())
    assert ":" not in str(path.relative_to(mount.path))
    return path


def _do(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_dynamic_linker_finds_a_library_by_ld_library_path(rootfs: Path, program: Path) -> None:
    setting = f"LD_LIBRARY_PATH=/nowhere:{rootfs}/lib"
    assert f"libgreet.so => {rootfs}/lib/libgreet.so" in _do("env", setting, "ldd", program)
    assert _do("env", setting, program) == f"{GREETING}\n"


def test_a_shell_finds_a_program_by_path(rootfs: Path) -> None:
    assert _do("env", f"PATH=/nowhere:{rootfs}/bin", "busybox", "echo", "found") == "found\n"


@pytest.mark.parametrize("kind", ["overlay", "fuse-overlayfs"])
def test_an_overlay_of_two_lowers_and_an_upper(scene: Scene, rootfs: Path, tmp_path: Path, kind: str) -> None:
    over = scene.serve(image([layer([File("etc/os-release", b"ID=over\n")])], platform=AMD64), f"over-{kind}")
    chain = (over / "rootfs").resolve().parent.name
    lowers = f"{_printed(scene.mount, 'snapshot', 'path', chain)}:{rootfs}"
    _do("mount", "-t", "tmpfs", "tmpfs", tmp_path)
    try:
        for name in ("upper", "work", "merged"):
            (tmp_path / name).mkdir()
        options = f"lowerdir={lowers},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        how = ["fuse-overlayfs"] if kind == "fuse-overlayfs" else ["mount", "-t", "overlay", "overlay"]
        _do(*how, "-o", options, tmp_path / "merged")
        try:
            assert (tmp_path / "merged/etc/os-release").read_text() == "ID=over\n"
            assert (tmp_path / "merged/bin/busybox").exists()
            (tmp_path / "merged/etc/new").write_text("new")
            assert (tmp_path / "upper/etc/new").read_text() == "new"
        finally:
            _do("umount", tmp_path / "merged")
    finally:
        _do("umount", tmp_path)


def test_bubblewrap_runs_a_program_in_the_rootfs(rootfs: Path) -> None:
    bwrap = ["bwrap", "--ro-bind", rootfs, "/", "--proc", "/proc", "--dev", "/dev", "--unshare-pid"]
    assert _do(*bwrap, "/bin/busybox", "cat", "/etc/os-release") == "ID=greeting\n"


NSPAWN = (
    # systemd-nspawn wants to make a lock file beside the rootfs, which the tree refuses.
    (
        "env",
        "SYSTEMD_NSPAWN_LOCK=0",
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--read-only",
        "--pipe",
    )
)


def test_nspawn_runs_a_program_in_the_rootfs(rootfs: Path) -> None:
    assert _do(*NSPAWN, "-D", rootfs, "/bin/busybox", "cat", "/etc/os-release") == "ID=greeting\n"


def test_nspawn_binds_a_rootfs_by_source_and_target(rootfs: Path) -> None:
    bind = f"--bind-ro={rootfs}/etc:/tmp"
    assert _do(*NSPAWN, "-D", rootfs, bind, "/bin/busybox", "cat", "/tmp/os-release") == "ID=greeting\n"
