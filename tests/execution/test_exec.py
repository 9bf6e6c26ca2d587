"""exec: what the runtime receives, and whether a failure is the runtime's or the program's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgfs.errors import Malformed
from imgfs.execution.runtimes.exec import ExecRequest, execute, process_of
from imgfs.execution.runtimes.runtime import OciRuntime, RuntimeFailed

SPEC: dict[str, Any] = {
    "process": {
        "args": ["sh"],
        "env": ["PATH=/bin", "HOME=/", "ODD==a=b"],
        "cwd": "/srv",
        "user": {"uid": 5, "gid": 6},
        "terminal": True,
        "consoleSize": {"height": 1, "width": 2},
        "capabilities": {"bounding": ["CAP_KILL"]},
    }
}
FAKE = """\
#!/bin/sh
# What a runtime is called like: --root R --log L --log-format json exec --process P ID
cp "$9" "$2/process.json"
cat > "$2/stdin"
[ -z "{complaint}" ] || echo '{{"level":"error","msg":"{complaint}"}}' > "$4"
exit {code}
"""


def runtime(directory: Path, code: int, complaint: str = "") -> OciRuntime:
    """A runtime that records its input, may write an error, and exits with the given code."""
    path = directory / "fake"
    path.write_text(FAKE.format(code=code, complaint=complaint))
    path.chmod(0o755)
    return OciRuntime("fake", str(path), directory, directory / "unused.log")


def test_a_process_is_the_containers_own_except_for_overrides() -> None:
    made = process_of(SPEC, ExecRequest(["id", "-u"], env={"HOME": "/root", "PATH": None, "NEW": "1=2"}, cwd="/tmp"))
    assert made == {
        "args": ["id", "-u"],
        "env": ["HOME=/root", "ODD==a=b", "NEW=1=2"],
        "cwd": "/tmp",
        "user": {"uid": 5, "gid": 6},
        "terminal": False,
        "capabilities": {"bounding": ["CAP_KILL"]},
    }
    assert process_of(SPEC, ExecRequest(["sh"]))["cwd"] == "/srv"


def test_a_process_with_a_terminal_has_TERM(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "vt220")
    made = process_of(SPEC, ExecRequest(["sh"], terminal=True))
    assert made["terminal"] is True
    assert "TERM=vt220" in made["env"]


@pytest.mark.parametrize("spec", [{}, {"process": []}])
def test_a_spec_without_a_process_is_damaged(spec: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        process_of(spec, ExecRequest(["sh"]))


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
def test_an_exit_code_without_a_runtime_error_is_the_programs(tmp_path: Path, code: int) -> None:
    assert execute(runtime(tmp_path, code), "one", SPEC, ExecRequest(["true"]), "/") == code
    assert json.loads((tmp_path / "process.json").read_text())["args"] == ["true"]
    assert (tmp_path / "stdin").read_text() == ""


@pytest.mark.parametrize(
    ("complaint", "code"),
    [
        ("exec failed: exec: x: executable file not found in PATH", 127),
        ("exec failed: exec: /x: permission denied", 126),
        ("container is not running", None),
    ],
)
def test_a_runtime_error_is_raised_with_a_shells_exit_code(tmp_path: Path, complaint: str, code: int | None) -> None:
    with pytest.raises(RuntimeFailed, match="runtime fake: exec: ") as caught:
        execute(runtime(tmp_path, 255, complaint), "one", SPEC, ExecRequest(["x"]), "/")
    assert caught.value.exit_code == code


def test_a_warning_of_a_successful_runtime_is_no_error(tmp_path: Path) -> None:
    assert execute(runtime(tmp_path, 0, "a warning at most"), "one", SPEC, ExecRequest(["true"]), "/") == 0


def test_a_refused_execve_is_126_and_not_the_runtimes_1(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    refused = ExecRequest([str(text)])
    assert execute(runtime(tmp_path, 1), "one", SPEC, refused, "/") == 126
    assert execute(runtime(tmp_path, 2), "one", SPEC, refused, "/") == 2
    assert execute(runtime(tmp_path, 1), "one", SPEC, refused, "/proc/self/nowhere") == 1
