"""The paths of auth files, when files are read again, and the warning about files that other users can read."""

from __future__ import annotations

import logging
import os
import pwd
from pathlib import Path

import pytest

from imgfs.errors import Malformed, TooLarge
from imgfs.registry.credentials import authfile
from imgfs.registry.credentials.authfile import SIZE_MAX, Identity, auth_files, own_identity, read_auth_file
from tests.registry.credentials.desk import Desk


def files(**environment: str) -> list[str]:
    return [str(path) for path in auth_files(Identity({"HOME": "/h", "PATH": "/bin"} | environment, 7))]


def test_podmans_files_come_first_and_dockers_last() -> None:
    assert files(XDG_RUNTIME_DIR="/r") == [
        "/r/containers/auth.json",
        "/run/containers/7/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    ]


def test_a_daemon_without_a_session_looks_where_sessions_write() -> None:
    assert files()[:2] == ["/run/user/7/containers/auth.json", "/run/containers/7/auth.json"]


def test_a_named_file_takes_the_place_of_the_first() -> None:
    assert files(XDG_RUNTIME_DIR="/r", REGISTRY_AUTH_FILE="/x/a.json") == [
        "/x/a.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    ]


def test_directories_of_configuration_may_be_elsewhere() -> None:
    assert files(XDG_CONFIG_HOME="/c", DOCKER_CONFIG="/d")[2:] == ["/c/containers/auth.json", "/d/config.json"]


def test_home_and_path_are_known_where_init_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "PATH"):
        monkeypatch.delenv(name)
    identity = own_identity()
    assert identity.home == Path(pwd.getpwuid(os.geteuid()).pw_dir)
    assert "/usr/bin" in identity.environment["PATH"].split(":")
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv("PATH", "/b")
    assert (own_identity().home, own_identity().environment["PATH"]) == (Path("/elsewhere"), "/b")


def test_a_user_without_an_entry_has_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(authfile.os, "geteuid", lambda: 4_000_000_123)
    assert own_identity().home == Path("/nonexistent")


def test_a_file_is_read_again_only_when_it_changed(desk: Desk) -> None:
    first = read_auth_file(desk.login(desk.auth, "one"), None)
    assert first is not None
    assert b"auths" in first[1]
    assert read_auth_file(desk.auth, first[0]) is None
    desk.login(desk.auth, "two")
    second = read_auth_file(desk.auth, first[0])
    assert second is not None
    assert second[0] != first[0]


def test_a_path_that_is_no_regular_file_is_refused_without_waiting(desk: Desk, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Malformed, match="no regular file"):
        read_auth_file(tmp_path / "pipe", None)
    with pytest.raises(OSError):
        read_auth_file(tmp_path / "gone", None)


@pytest.mark.parametrize("over", [0, 1])
def test_a_file_above_the_size_limit_is_refused(tmp_path: Path, over: int) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(SIZE_MAX + over))
    if over:
        with pytest.raises(TooLarge):
            read_auth_file(path, None)
    else:
        assert read_auth_file(path, None) is not None


@pytest.mark.parametrize(
    ("mode", "owner", "said"),
    [
        (0o600, 0, []),
        (0o640, 0, []),
        (0o644, 0, ["can be read by other users"]),
        (0o622, 0, ["can be changed by other users"]),
        (0o600, 65534, ["belongs to another user"]),
        (0o666, 65534, ["belongs to another user", "can be changed by other users"]),
    ],
)
def test_a_file_that_other_users_can_access_is_logged(
    desk: Desk, caplog: pytest.LogCaptureFixture, mode: int, owner: int, said: list[str]
) -> None:
    path = desk.login(desk.auth, "canary")
    os.chown(path, owner, owner)
    path.chmod(mode)
    with caplog.at_level(logging.WARNING, "imgfs.registry"):
        assert read_auth_file(path, None) is not None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(said)
    assert all(part in message for part, message in zip(said, messages, strict=True))
    assert all(vars(record)["file"] == str(path) for record in caplog.records)
    assert "canary" not in caplog.text
