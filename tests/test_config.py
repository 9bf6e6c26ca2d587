"""The configuration: every option, its refusals, and where state lies by default."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.config import Config, default_state, load_config
from imgfs.errors import Invalid
from imgfs.oci.platform import Platform, local_platform


def load(directory: Path, text: str) -> Config:
    (directory / "imgfs.toml").write_text(text)
    return load_config(None, directory)


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    assert load_config(None, tmp_path) == Config()
    assert Config().chosen_platform == local_platform()


def test_the_file_of_the_state_directory_is_read_and_a_named_one_goes_before_it(tmp_path: Path) -> None:
    assert load(tmp_path, 'resolve = "registered"').resolve == "registered"
    other = tmp_path / "other.toml"
    other.write_text('log_level = "debug"')
    assert load_config(other, tmp_path) == Config(log_level="debug")


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"gone\.toml: no such configuration file"):
        load_config(tmp_path / "gone.toml", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('acess = "all"', "unknown option 'acess'; did you mean 'access'"),
        ("zzzzzz = 1", "known are access, resolve"),
        ("access = 1", "access"),
        ('access = "everybody"', "expected root, group:NAME or all"),
        ('access = "group:no-such-group"', "there is no group 'no-such-group'"),
        ('auth_file = "auth.json"', "auth_file: expected an absolute path"),
        ('access = "group:"', "there is no group ''"),
        ('resolve = "always"', "resolve"),
        ('platform = "linux"', "os/architecture"),
        ('platform = "linux/../x"', "os/architecture"),
        ('plain_http = "host"', "plain_http"),
        ('log_level = "loud"', "log_level"),
        ("access = ", "imgfs.toml"),
        ('access = "\\ud800"', "imgfs.toml"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_cure(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path, text)
    assert str(tmp_path) in caught.value.message or "there is no group" in said or "os/arch" in said
    assert said in caught.value.message


def test_a_file_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "imgfs.toml").write_bytes(b'access = "\xff"')
    with pytest.raises(Invalid, match=r"imgfs\.toml"):
        load_config(None, tmp_path)
    with pytest.raises(Invalid, match="directory"):
        load_config(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("access", "mode", "private"),
    [("root", 0o700, True), ("all", 0o755, False), ("group:root", 0o750, False)],
)
def test_access_decides_who_enters(access: str, mode: int, private: bool) -> None:
    config = Config(access=access)
    assert (config.root_mode, config.is_private) == (mode, private)
    assert config.root_group == (grp.getgrnam("root").gr_gid if access == "group:root" else None)


def test_a_platform_is_parsed() -> None:
    assert Config(platform="linux/arm/v7").chosen_platform == Platform("linux", "arm", "v7")


@given(
    st.builds(
        Config,
        access=st.sampled_from(["root", "all", "group:root"]),
        resolve=st.sampled_from(["lookup", "registered"]),
        platform=st.sampled_from(["", "linux/amd64", "linux/arm64/v8"]),
        plain_http=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"))),
        log_level=st.sampled_from(["debug", "info", "warning", "error"]),
    )
)
def test_what_is_in_force_reads_back_as_the_same(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "rendered.toml"
    path.write_text(config.render())
    assert load_config(path, path.parent) == config


def test_state_lies_where_systemd_or_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert default_state() == Path("/var/lib/one")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state() == Path("/var/lib/imgfs-state")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/.state")
    assert default_state() == Path("/home/u/.state/imgfs")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert default_state() == Path("/home/u/.local/state/imgfs")
