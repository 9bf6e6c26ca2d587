"""`imgfs config`: the options that a mount would find, each with its origin, and what they mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from imgfs.cli import main
from imgfs.config.options import table
from tests.cli.conftest import Run


def show(state: Path, *arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env=env or {}).invoke(main, ["config", "show", "--state", str(state), *arguments])


def test_every_value_is_told_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "imgfs.toml").write_text('\nresolve = "registered"\n[plugins.compression.xz]\nmemory_mib = 64\n')
    done = show(tmp_path, "--format", "json", "-o", "views=fuse,plain_http=a", env={"IMGFS_LOG_LEVEL": "debug"})
    assert done.exit_code == 0, done.output
    found = {one["option"]: (one["value"], one["origin"]) for one in json.loads(done.stdout)}
    of_plugins = {name for name in found if name.startswith("plugins.")}
    assert found.keys() - of_plugins == table().keys() - {"plugins"}
    assert found["plugins.execution.oci.runtime"] == ("", "default")
    assert found["plugins.containers.local.keep_deleted_days"] == (7.0, "default")
    assert found["access"] == ("root", "default")
    assert found["resolve"] == ("registered", f"{tmp_path}/imgfs.toml:2")
    assert found["plugins.compression.xz.memory_mib"] == (64, f"{tmp_path}/imgfs.toml:4")
    assert found["log_level"] == ("debug", "environment IMGFS_LOG_LEVEL")
    assert found["views"] == ("fuse", "command line")
    assert found["plain_http"] == (["a"], "command line")


def test_people_get_a_table(tmp_path: Path) -> None:
    lines = show(tmp_path).stdout.splitlines()
    assert lines[0].split() == ["OPTION", "VALUE", "ORIGIN"]
    assert lines[1].split() == ["access", '"root"', "default"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-o", "acess=all"), 2, "did you mean 'access'?"),
        (("-o", "noexec"), 1, "omit it"),
        (("--config", "/nowhere/x.toml"), 2, "no such configuration file"),
        (("-o", "disabled_plugins=compression.xy"), 2, "did you mean 'compression.xz'?"),
    ],
)
def test_what_a_mount_would_refuse_is_refused(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = show(tmp_path, *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


def test_help_tells_every_option_with_its_default(run: Run) -> None:
    text = " ".join(run("config", "--help").stdout.split())
    for name, option in table().items():
        assert f"{name} {option.text.partition(' ')[0]}" in text
    assert 'One of lookup, registered; default "lookup".' in text
