"""The process of a container: the image's config and the caller's overrides."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from imgfs.errors import ImgfsError, Invalid, Malformed, NotFound
from imgfs.execution.bundle.overrides import Overrides, Volume, parse_memory, parse_variable, parse_volume
from imgfs.execution.bundle.process import PATH, ImageProcess, arguments, environment, parse_process, working_directory
from imgfs.execution.bundle.users import User
from imgfs.execution.signals import signal_number

BOTH = ImageProcess(entrypoint=("/entry", "-a"), cmd=("one", "two"))


def config(**process: Any) -> bytes:
    return json.dumps({"os": "linux", "architecture": "amd64", "config": process}).encode()


@pytest.mark.parametrize(
    ("image", "wish", "expected"),
    [
        (BOTH, Overrides(), ("/entry", "-a", "one", "two")),
        (BOTH, Overrides(arguments=("x",)), ("/entry", "-a", "x")),
        (BOTH, Overrides(entrypoint="/other"), ("/other",)),
        (BOTH, Overrides(arguments=("x",), entrypoint="/other"), ("/other", "x")),
        (BOTH, Overrides(arguments=("x",), entrypoint=""), ("x",)),
        (ImageProcess(cmd=("one",)), Overrides(), ("one",)),
    ],
)
def test_command(image: ImageProcess, wish: Overrides, expected: tuple[str, ...]) -> None:
    assert arguments(image, wish, "box") == expected


@pytest.mark.parametrize(
    ("image", "wish"),
    [(ImageProcess(), Overrides()), (BOTH, Overrides(entrypoint="")), (ImageProcess(cmd=("",)), Overrides())],
)
def test_nothing_to_run_is_invalid(image: ImageProcess, wish: Overrides) -> None:
    with pytest.raises(Invalid, match="box: has neither Entrypoint nor Cmd"):
        arguments(image, wish, "box")


def test_environment_overrides_the_images_and_that_overrides_defaults() -> None:
    image = ImageProcess(env=("A=1", "B=2", "A=3", "PATH=/x", "E="))
    wish = Overrides(env={"B": "4", "C": "5=6", "HOME": None}, terminal=True)
    made = environment(image, wish, User(0, 0, (), "/root"), "box")
    assert made == ("PATH=/x", "HOSTNAME=box", "TERM=xterm", "A=3", "B=4", "E=", "C=5=6")
    assert environment(ImageProcess(), Overrides(), User(0, 0), "box") == (f"PATH={PATH}", "HOSTNAME=box", "HOME=/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "/"), ("srv", "/srv"), ("//srv/", "/srv"), ("/../../etc", "/etc"), ("a/../../b", "/b"), ("/a//b/.", "/a/b")],
)
def test_working_directory_is_within_the_root(text: str, expected: str) -> None:
    assert working_directory(ImageProcess(working_dir=text), Overrides()) == expected
    assert working_directory(ImageProcess(working_dir="/x"), Overrides(working_dir=text)) == expected


def test_a_config_without_fields_is_an_empty_config() -> None:
    for data in (b"{}", b'{"config":null}', config(Cmd=None, Env=None, Entrypoint=None, Labels=None, User=None)):
        assert parse_process(data)[1] == ImageProcess()


@pytest.mark.parametrize(
    "process",
    [
        {"Cmd": ["a\0b"]},
        {"Entrypoint": ["\0"]},
        {"Env": ["A=\0"]},
        {"WorkingDir": "/a\0"},
        {"User": "ro\0ot"},
        {"Labels": {"a": "\0"}},
        {"StopSignal": "SIGNOTHING"},
        {"StopSignal": "0"},
        {"StopSignal": "99999999999999999999"},
        {"Env": ["A=" + "x" * (2 << 20)]},
    ],
)
def test_hostile_config_is_refused_with_a_sentence(process: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="image config"):
        parse_process(config(**process))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"config":[]}', b'{"config":{"Cmd":"sh"}}', b"[" * 10_000, b"\xff"])
def test_malformed_config_is_reported(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_process(data)


@pytest.mark.parametrize("env", ["noequals", "=x", ""])
def test_variable_without_a_name_is_refused(env: str) -> None:
    with pytest.raises(Invalid, match="Env"):
        environment(ImageProcess(env=(env,)), Overrides(), User(0, 0), "box")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("SIGRTMAX-2", 62),
    ],
)
def test_signals_by_name_and_number(text: str, number: int) -> None:
    assert signal_number(text, "x") == number


@pytest.mark.parametrize(
    "text", ["HUP+1", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMAX-31", "65", "9" * 5000, "RTMIN+" + "9" * 5000]
)
def test_an_unknown_signal_is_reported(text: str) -> None:
    with pytest.raises(Invalid, match="is not a signal"):
        signal_number(text, "x")


def test_volumes_variables_and_sizes(tmp_path: Any) -> None:
    assert parse_volume(f"{tmp_path}:/data:ro") == Volume(str(tmp_path), "/data", read_only=True)
    assert parse_volume(f"{tmp_path}:/a/../data") == Volume(str(tmp_path), "/data")
    assert parse_variable("A=b=c", {}) == ("A", "b=c")
    assert parse_variable("A", {"A": "x"}) == ("A", "x")
    assert parse_variable("A", {}) == ("A", None)
    assert parse_memory("64m") == 64 << 20


@pytest.mark.parametrize("text", ["/", "/:", ":/x", "/:x", "/:/", "/:/..", "/:/a:rx", "/nothing/there:/x", "a\0:/b"])
def test_a_malformed_volume_is_reported(text: str) -> None:
    with pytest.raises(ImgfsError, match="volume") as caught:
        parse_volume(text)
    assert isinstance(caught.value, Invalid | NotFound)


@pytest.mark.parametrize("text", ["", "1", "m", "-5m", "5x", "9" * 30, "1.5g", "\u0665m"])
def test_a_malformed_size_is_reported(text: str) -> None:
    with pytest.raises(Invalid, match="memory"):
        parse_memory(text)


def test_nul_in_an_override_is_invalid() -> None:
    with pytest.raises(Invalid, match="NUL"):
        Overrides(arguments=("a\0",)).check()
    with pytest.raises(Invalid, match="NUL"):
        Overrides(env={"a": "\0"}).check()


@pytest.mark.parametrize(
    "wish",
    [
        Overrides(arguments=("a", "\udcff")),
        Overrides(env={"a": "\udcff"}),
        Overrides(working_dir="/\udcff"),
        Overrides(volumes=(Volume("/\udcff", "/a"),)),
        Overrides(volumes=(Volume("/a", "/\udcff"),)),
    ],
)
def test_bytes_that_are_not_text_are_invalid(wish: Overrides) -> None:
    with pytest.raises(Invalid, match="UTF-8"):
        wish.check()
