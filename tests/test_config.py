"""The configuration: all options, the errors of wrong values, and the default state directory."""

from __future__ import annotations

import grp
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.config import Config, Settings, default_state, load_config, load_settings
from imgfs.config.options import options_of, table
from imgfs.config.settings import SIZE_MAX, OptionValue, parse_settings
from imgfs.config.toml import lines_of
from imgfs.errors import Invalid
from imgfs.oci.platform import Platform, local_platform


def load(directory: Path, text: str) -> Config:
    (directory / "imgfs.toml").write_text(text)
    return load_config(None, directory)


def test_without_a_file_every_option_has_its_default(tmp_path: Path) -> None:
    assert load_config(None, tmp_path) == Config()
    assert Config().chosen_platform == local_platform()


def test_the_config_of_the_state_directory_is_read_unless_a_file_is_named(tmp_path: Path) -> None:
    assert load(tmp_path, 'resolve = "registered"').resolve == "registered"
    other = tmp_path / "other.toml"
    other.write_text('log_level = "debug"')
    assert load_config(other, tmp_path) == Config(log_level="debug")


def test_a_named_config_file_must_exist(tmp_path: Path) -> None:
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
        ('# one\n\nacces = "all"', "imgfs.toml:3: unknown option 'acces'"),
        ("plain_http = [\n  1,\n]", "imgfs.toml:1: plain_http: got [1], expected a list of texts"),
        ('resolve = "lookup"\nlog_level = "loud"', 'imgfs.toml:2: log_level: got "loud", expected one of debug, info'),
        ("view_idle_seconds = 0", "imgfs.toml:1: view_idle_seconds: got 0, expected a number from 1 to 86400"),
        ("log_bytes = 1", "log_bytes: got 1, expected a whole number from 65536 up"),
        ('\nhosts_path = ["/a", "b"]', "imgfs.toml:2: hosts_path: expected absolute paths"),
        ('\nplatform = "linux"', "imgfs.toml:2: "),
        ("view_idle_seconds = nan", "view_idle_seconds: got"),
        ("[plugins]\ncompression = 1", "imgfs.toml:2: plugins: got"),
    ],
)
def test_an_invalid_config_is_refused_with_its_path_and_the_expected_value(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(str(tmp_path))
    assert said in caught.value.message


def test_a_config_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=f"more than {SIZE_MAX} bytes"):
        load(tmp_path, "#" * (SIZE_MAX + 1))


def test_command_line_overrides_environment_overrides_file_and_each_value_has_its_origin(tmp_path: Path) -> None:
    path = tmp_path / "imgfs.toml"
    path.write_text('# first\nresolve = "registered"\nviews = "fuse"\nquota_bytes = 1\n[plugins.k.one]\nkey = 7\n')
    environment = {"IMGFS_VIEWS": "kernel", "IMGFS_QUOTA_BYTES": "2", "IMGFS_PLATFORM": "", "IMGFS_OTHER": "x"}
    found = load_settings(None, tmp_path, environment, [("quota_bytes", "3")])
    said = found.values()
    assert said["access"] == OptionValue("root", "default")
    assert said["platform"] == OptionValue("", "default")
    assert said["resolve"] == OptionValue("registered", f"{path}:2")
    assert said["views"] == OptionValue("kernel", "environment IMGFS_VIEWS")
    assert said["quota_bytes"] == OptionValue(3, "command line")
    assert said["plugins.k.one.key"] == OptionValue(7, f"{path}:6")
    assert found.config == Config(
        resolve="registered", views="kernel", quota_bytes=3, plugins={"k": {"one": {"key": 7}}}
    )


def test_every_option_of_a_known_plugin_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "imgfs.toml"
    path.write_text("[plugins.k.two]\nb = 1\nc.d = 2\n[plugins.k.gone]\nkey = 3\n")
    found = load_settings(None, tmp_path)
    said = found.values({"k.two": {"b": 1, "c": {"d": 2}, "e": ["x"]}, "k.one": {"a": None}})
    of_plugins = {name.removeprefix("plugins.k."): one for name, one in said.items() if name.startswith("plugins.")}
    assert list(of_plugins) == ["gone.key", "one.a", "two.b", "two.c", "two.e"]
    assert of_plugins["two.b"] == OptionValue(1, f"{path}:2")
    assert of_plugins["two.c"] == OptionValue({"d": 2}, f"{path}:3")
    assert of_plugins["two.e"] == OptionValue(["x"], "default")
    assert of_plugins["one.a"] == OptionValue(None, "default")
    assert parse_settings(found.render({"k.two": {"b": 1}}))["plugins.k.two.b"] == of_plugins["two.b"]


def test_text_values_are_parsed_into_lists_and_numbers(tmp_path: Path) -> None:
    given = [("plain_http", "a:5000 b"), ("plain_http", "c"), ("view_idle_seconds", "2.5")]
    config = load_settings(None, tmp_path, {"IMGFS_DISABLED_PLUGINS": " x.y  z.w "}, given).config
    assert (config.plain_http, config.view_idle_seconds) == (["a:5000", "b", "c"], 2.5)
    assert config.disabled_plugins == ["x.y", "z.w"]


@pytest.mark.parametrize(
    ("environment", "given", "said"),
    [
        ({"IMGFS_LOG_LEVEL": "loud"}, [], 'environment IMGFS_LOG_LEVEL: log_level: got "loud", expected one of'),
        ({"IMGFS_QUOTA_BYTES": "1G"}, [], 'environment IMGFS_QUOTA_BYTES: quota_bytes: got "1G", expected a whole'),
        ({"IMGFS_ACCESS": "group:"}, [], "environment IMGFS_ACCESS: access"),
        ({}, [("acces", "all")], "command line: unknown option 'acces'; did you mean 'access'?"),
        ({}, [("access", "me")], "command line: access: expected root"),
        ({}, [("quota_bytes", "[1]")], "command line: quota_bytes: got [1]"),
    ],
)
def test_invalid_text_values_are_refused_with_their_origin(
    tmp_path: Path, environment: dict[str, str], given: list[tuple[str, str]], said: str
) -> None:
    with pytest.raises(Invalid) as caught:
        load_settings(None, tmp_path, environment, given)
    assert caught.value.message.startswith(said)


def test_options_of_a_third_party_plugin_are_described_from_their_types() -> None:
    class Theirs(msgspec.Struct, frozen=True):
        plain: int = 1
        switch: bool = False
        most: Annotated[float, msgspec.Meta(le=2.5)] = 2.0
        least: Annotated[int, msgspec.Meta(ge=2_000_000, description="Bytes.")] = 2_000_000
        odd: dict[str, str] | None = None

    told = {name: (option.expected, option.text) for name, option in options_of(Theirs).items()}
    assert told == {
        "plain": ("a whole number", ""),
        "switch": ("true or false", ""),
        "most": ("a number up to 2.5", ""),
        "least": ("a whole number from 2000000 up", "Bytes."),
        "odd": ("a value", ""),
    }


def test_every_option_has_a_description() -> None:
    assert list(table()) == list(Config.__struct_fields__)
    for name, option in table().items():
        assert option.text.endswith("."), name
        assert option.is_table or option.expected.startswith(("a ", "one of ")), name
        assert option.default == getattr(Config(), name)
    assert [one.name for one in table().values() if not one.variable] == ["plugins"]


def test_a_config_that_is_not_text_or_is_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "imgfs.toml").write_bytes(b'access = "\xff"')
    with pytest.raises(Invalid, match=r"imgfs\.toml"):
        load_config(None, tmp_path)
    with pytest.raises(Invalid, match="directory"):
        load_config(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("access", "mode", "private"),
    [("root", 0o700, True), ("all", 0o755, False), ("group:root", 0o750, False)],
)
def test_access_sets_the_mode_and_the_group_of_the_root(access: str, mode: int, private: bool) -> None:
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
def test_a_rendered_config_parses_to_the_same_config(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "rendered.toml"
    found = Settings(config, {"access": "a file with\na line end:3"})
    path.write_text(found.render())
    assert load_config(path, path.parent) == config
    parsed = parse_settings(found.render())
    assert parsed.pop("access") == OptionValue(config.access, "a file with\\na line end:3")
    assert parsed == {name: one for name, one in found.values().items() if name != "access"}


QUOTES = "'" * 3
KEYS = st.text("abz-_ é.\"'#=[]", max_size=5)
LEAVES = st.one_of(
    st.integers(-9, 9), st.booleans(), st.text("a\n\"'#[=]", max_size=9), st.lists(st.integers(), max_size=3)
)
PAIRS = st.lists(st.tuples(KEYS, LEAVES), max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.lists(KEYS, max_size=3), PAIRS), max_size=4))
def test_the_line_number_of_each_key_is_found(tables: list[tuple[list[str], list[tuple[str, object]]]]) -> None:
    written: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for header, pairs in tables:
        if written and not header:
            continue  # would belong to the table before
        block = [f"[{'.'.join(map(json.dumps, header))}]", "# [comment]", ""] if header else []
        found: dict[tuple[str, ...], int] = {}
        for key, value in pairs:
            found[*header, key] = len(written) + len(block) + 1
            block += f"{json.dumps(key)} = {spread(value)}".split("\n")
        try:
            tomllib.loads("\n".join(written + block))
        except tomllib.TOMLDecodeError:
            continue  # a key or a table twice
        written, expected = written + block, expected | found
    assert lines_of("\n".join(written)) == expected


def spread(value: object) -> str:
    """Return TOML with lists and strings that span several lines."""
    if isinstance(value, list):
        return json.dumps(value, indent=1)
    if isinstance(value, str) and "'" not in value:
        return f"{QUOTES}\n{value}{QUOTES}"
    return json.dumps(value)


def test_the_default_state_directory_follows_systemd_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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
