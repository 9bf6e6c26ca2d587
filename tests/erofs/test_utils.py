"""The tools of erofs-utils as oracles. They refuse blocks of 512 bytes, so they get an image with larger ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import program, run


@pytest.fixture
def image(tmp_path: Path) -> list[str]:
    """Return the arguments for an image and its devices."""
    subprocess.run([sys.executable, "-m", "tests.erofs.pages", str(tmp_path)], check=True)
    devices = sorted(tmp_path.glob("device-*"))
    return [*(f"--device={path}" for path in devices), str(tmp_path / "image.erofs")]


def test_fsck_finds_nothing(image: list[str]) -> None:
    done = subprocess.run([program("fsck.erofs"), "-d3", *image], capture_output=True, text=True, check=True)
    assert "No errors found" in done.stdout + done.stderr  # the exit code is always 0


def test_fsck_extracts_what_was_put_in(image: list[str], tmp_path: Path) -> None:
    out, files = tmp_path / "out", tmp_path / "files"
    run("fsck.erofs", f"--extract={out}", *image)
    names = {path.name for path in files.iterdir()} - {"sparse"}  # which omits the holes
    assert {name: (out / name).read_bytes() for name in names} == {name: (files / name).read_bytes() for name in names}
    assert len(os.listdir(out / "directory")) == 1501
    assert os.readlink(out / "link") == "small"
    assert os.readlink(out / "long link") == "y" * 4000
    assert (out / "one").read_bytes() == (out / "directory/two").read_bytes() == b"of two names"
    assert (out / "fifo").is_fifo()
    assert (out / "socket").is_socket()
    assert os.stat(out / "device").st_rdev == os.makedev(1, 3)


def test_dump_tells_the_same_numbers(image: list[str]) -> None:
    told = run("dump.erofs", "-s", *image).decode()
    assert "Filesystem inode count:                       1514\n" in told
    capable = run("dump.erofs", "--path=/capable", *image).decode()
    assert "Size: 7  " in capable
    assert "Access: 0644/rw-r--r--" in capable
