"""mount.imgfs as mount(8) calls it: arguments, exit codes, sentences. Mounting is in tests/mount/test_service.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.cli.service.mount_helper import run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 1, "expected a source and a directory, got 0 words; usage: mount.imgfs"),
        (("none",), 1, "got 1 words"),
        (("none", "/m", "more"), 1, "got 3 words"),
        (("none", "/m", "-x"), 1, "option -x not recognized; usage"),
        (("none", "/m", "-N", "/proc/1/ns/mnt"), 1, "nsenter"),
        (("none", "/m", "-o", "nonsens=1"), 1, "nonsens"),
        (("none", "/m", "-o", "remount"), 1, "unmount it and mount it again"),
        (("none", "/m", "-f", "-o", "rw,views=no"), 1, 'command line: views: got "no", expected one of kernel, fuse'),
        (("none", "/m", "-f", "-o", "config=/nowhere/x.toml"), 1, "/nowhere/x.toml: no such configuration file"),
    ],
)
def test_wrong_calls_are_told_with_mounts_own_code(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mount.imgfs: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_state_directory_below_the_mountpoint_is_wrong_usage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["none", str(tmp_path), "-o", f"state={tmp_path}/state"]) == 1
    assert "below the mountpoint" in capfd.readouterr().err


def test_a_fake_mounts_nothing_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["none", str(tmp_path / "mnt"), "-fv", "-t", "imgfs", "-n", "-o", f"rw,nofail,state={tmp_path}/state"]) == 0
    )
    assert capsys.readouterr().out == f"mount.imgfs: {tmp_path}/mnt\n"
    assert list(tmp_path.iterdir()) == []


def test_sloppy_passes_over_what_is_unknown(tmp_path: Path) -> None:
    assert run(["none", str(tmp_path / "mnt"), "-s", "-f", "-o", "rw,nonsense"]) == 0


def test_help_explains_options_and_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("state=DIR", "allow_other", "\n  32 ", "fstab"))
    assert run(["-V"]) == 0
    assert capsys.readouterr().out.startswith("mount.imgfs, version ")
