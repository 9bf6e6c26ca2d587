"""The directory of a host in certs.d: its name, its content, and that the next request sees a change."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from imgfs.errors import Invalid, RegistryFailed
from imgfs.registry.hosts.hosts_toml import HostDirectories, names
from imgfs.registry.http.trust import SYSTEM


def put(root: Path, name: str, text: str, file: str = "hosts.toml") -> Path:
    (root / name).mkdir(parents=True, exist_ok=True)
    path = root / name / file
    path.write_text(text)
    return path


def server(directories: HostDirectories, host: str) -> str:
    return directories.endpoints(host)[-1].base


@pytest.mark.parametrize(
    ("host", "directories"),
    [
        ("quay.io", ["quay.io"]),
        ("quay.io:5000", ["quay.io_5000_", "quay.io:5000"]),
        ("[::1]:5000", ["[::1]_5000_", "[::1]:5000"]),
        ("[::1]", ["[::1]"]),
    ],
)
def test_a_port_is_written_in_two_ways(host: str, directories: list[str]) -> None:
    assert names(host) == directories


def test_the_first_directory_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    directories = HostDirectories([first, second])
    assert server(directories, "x.example:5000") == "https://x.example:5000"
    for root, name, said in (
        (first, "_default", "https://default.example"),
        (second, "x.example:5000", "https://second.example"),
        (first, "x.example:5000", "https://colon.example"),
        (second, "x.example_5000_", "https://underscores.example"),
    ):
        put(root, name, f'server = "{said}"')
        assert server(directories, "x.example:5000") == said
    assert server(directories, "y.example") == "https://default.example"


def test_a_change_counts_at_once(tmp_path: Path) -> None:
    directories = HostDirectories([tmp_path])
    path = put(tmp_path, "x.example", 'server = "https://old.example"')
    assert server(directories, "x.example") == "https://old.example"
    path.write_text('server = "https://new.example"')
    assert server(directories, "x.example") == "https://new.example"
    path.unlink()
    assert server(directories, "x.example") == "https://x.example"


def test_a_certificate_that_changed_is_another_trust(tmp_path: Path) -> None:
    directories = HostDirectories([tmp_path])
    put(tmp_path, "x.example", 'ca = "ca.pem"')
    missing = directories.endpoints("x.example")[0].trust
    put(tmp_path, "x.example", "one", "ca.pem")
    there = directories.endpoints("x.example")[0].trust
    put(tmp_path, "x.example", "other", "ca.pem")
    assert len({missing, there, directories.endpoints("x.example")[0].trust}) == 3


def test_without_hosts_toml_the_files_are_dockers(tmp_path: Path) -> None:
    for name in ("b.crt", "a.crt", "me.cert", "me.key", "readme.txt"):
        put(tmp_path, "x.example", "", name)
    (alone,) = HostDirectories([tmp_path]).endpoints("x.example")
    base = tmp_path / "x.example"
    assert [one.path for one in alone.trust.ca] == [f"{base}/a.crt", f"{base}/b.crt"]
    assert [(one.path, key and key.path) for one, key in alone.trust.client] == [(f"{base}/me.cert", f"{base}/me.key")]


def test_an_empty_directory_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.example").mkdir()
    (alone,) = HostDirectories([tmp_path]).endpoints("x.example")
    assert (alone.trust, alone.mirror) == (SYSTEM, False)


def test_an_invalid_host_name_does_not_reach_the_disk(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        HostDirectories([tmp_path]).endpoints("../x.example")


def test_a_hosts_toml_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.example/hosts.toml").mkdir(parents=True)
    with pytest.raises(RegistryFailed, match=r"x\.example/hosts\.toml: Is a directory"):
        HostDirectories([tmp_path]).endpoints("x.example")


def test_a_warning_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "x.example", "zzz = 1")
    directories = HostDirectories([tmp_path])
    with caplog.at_level(logging.WARNING, "imgfs.registry"):
        directories.endpoints("x.example")
        directories.endpoints("x.example")
    assert len(caplog.records) == 1


def test_a_directory_of_another_user_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The test runs in a child as another user, because root may read every directory."""
    root = tmp_path / "certs.d"
    put(root, "x.example", 'server = "https://secret.example"')
    root.chmod(0o700)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    child = os.fork()
    if not child:
        os.setuid(65534)
        said = HostDirectories([root]).endpoints("x.example")[0].base
        os._exit(said != "https://x.example")
    assert os.waitpid(child, 0)[1] == 0
