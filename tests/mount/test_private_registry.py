"""Private registries through a real mount: imgfs uses logins that real tools write before or after the mount starts."""

from __future__ import annotations

import errno
import json
import os
import resource
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.private import (
    CHANGED,
    PASSWORD,
    USER,
    Home,
    push,
    read,
    registry_with_passwords,
    registry_with_tokens,
)
from tests.mount.scene import error_of, refused, until
from tests.support.mounted import Mounted
from tests.support.token_server import basic


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


@pytest.fixture
def mounted(tmp_path: Path, home: Home) -> Iterator[Mounted]:
    """A mount whose daemon runs in the environment of `home`."""
    with Mounted(tmp_path, 'log_level = "debug"\n') as mount:
        mount.start()
        yield mount


def test_a_login_made_while_mounted_opens_a_private_registry(tmp_path: Path, home: Home, mounted: Mounted) -> None:
    with registry_with_passwords(tmp_path) as (registry, _):
        push(tmp_path, registry, "private/box", "one")
        name = f"{registry.host}/private/box:1"
        with refused(errno.EACCES):
            os.readlink(mounted.image(name))
        assert f"`skopeo login {registry.host}`" in error_of(mounted.image(registry.host))
        done = mounted.run("pull", name)
        assert done.returncode == 4
        assert "there is no auth file" in done.stderr
        home.log_in(registry.host)
        assert until(lambda: read(mounted, name)) == b"one\n"


def test_a_changed_password_and_a_new_login_need_no_remount(tmp_path: Path, home: Home, mounted: Mounted) -> None:
    with registry_with_passwords(tmp_path) as (registry, passwords):
        for mark in ("one", "two", "three"):
            push(tmp_path, registry, mark, mark)
        home.log_in(registry.host)
        assert read(mounted, f"{registry.host}/one:1") == b"one\n"
        passwords.set(CHANGED)
        with refused(errno.EACCES):
            os.readlink(mounted.image(f"{registry.host}/two:1"))
        assert f"to the login from {home.auth}" in error_of(mounted.image(registry.host))
        home.log_in(registry.host, CHANGED)
        assert until(lambda: read(mounted, f"{registry.host}/two:1")) == b"two\n"
        home.log_out(registry.host)
        assert read(mounted, f"{registry.host}/two:1") == b"two\n"
        with refused(errno.EACCES):
            os.readlink(mounted.image(f"{registry.host}/three:1"))


def test_the_password_is_exchanged_for_a_token(tmp_path: Path, home: Home, mounted: Mounted) -> None:
    with registry_with_tokens(tmp_path) as (registry, tokens, _):
        push(tmp_path, registry, "private/box", "one")
        home.log_in(registry.host)
        tokens.shown.clear()
        assert read(mounted, f"{registry.host}/private/box:1") == b"one\n"
        assert [(one.authorization, one.scope) for one in tokens.shown] == [
            (basic(USER, PASSWORD), "repository:private/box:pull")
        ]


def test_an_identity_token_is_exchanged_for_a_token(tmp_path: Path, home: Home, mounted: Mounted) -> None:
    with registry_with_tokens(tmp_path) as (registry, tokens, _):
        push(tmp_path, registry, "private/box", "one")
        name = f"{registry.host}/private/box:1"
        with refused(errno.EACCES):
            os.readlink(mounted.image(name))
        tokens.shown.clear()
        home.docker.parent.mkdir()
        home.docker.write_text(json.dumps({"auths": {registry.host: {"identitytoken": "canary-identity"}}}))
        assert until(lambda: read(mounted, name)) == b"one\n"
        assert [one.method for one in tokens.shown] == ["POST"]


def test_a_credential_helper_has_the_login(tmp_path: Path, home: Home, mounted: Mounted) -> None:
    with registry_with_passwords(tmp_path) as (registry, _):
        push(tmp_path, registry, "private/box", "one")
        add_program(home, tmp_path / "seen", PASSWORD)
        home.docker.parent.mkdir()
        home.docker.write_text(json.dumps({"credHelpers": {registry.host: "keeper"}}))
        assert read(mounted, f"{registry.host}/private/box:1") == b"one\n"


def test_a_configured_auth_file_is_the_only_one_read(tmp_path: Path, home: Home) -> None:
    with (
        registry_with_passwords(tmp_path) as (registry, _),
        Mounted(tmp_path, f"auth_file = {json.dumps(str(tmp_path / 'own.json'))}\n") as mounted,
    ):
        mounted.start()
        push(tmp_path, registry, "private/box", "one")
        home.log_in(registry.host)
        name = f"{registry.host}/private/box:1"
        with refused(errno.EACCES):
            os.readlink(mounted.image(name))
        home.auth.rename(tmp_path / "own.json")
        assert until(lambda: read(mounted, name)) == b"one\n"


def add_program(home: Home, seen: Path, password: str) -> None:
    """Install a credential helper that writes its arguments and environment to `seen`. A file has its password."""
    (home.bin / "secret").write_text(json.dumps({"Username": USER, "Secret": password}))
    program = home.bin / "docker-credential-keeper"
    program.write_text(
        f"#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ > {seen}\ncat >/dev/null\ncat {home.bin}/secret\n"
    )
    program.chmod(0o700)


def everything_shown(mounted: Mounted) -> dict[str, bytes]:
    """Return the files of the state and of the tree, the xattrs, and /proc of the daemon."""
    shown = {str(path): path.read_bytes() for path in mounted.state.rglob("*") if path.is_file()}
    for directory in ("images", "content", "snapshots", ".imgfs"):
        for path in [mounted.path / directory, *(mounted.path / directory).rglob("*")]:
            names = os.listxattr(path, follow_symlinks=False)
            shown |= {f"{path} {name}": os.getxattr(path, name, follow_symlinks=False) for name in names}
            if path.is_file() and not path.is_symlink():
                shown[str(path)] = path.read_bytes()
    for name in ("cmdline", "environ", "status"):
        shown[f"process {name}"] = Path(f"/proc/{mounted.pid()}/{name}").read_bytes()
    return shown


def test_a_crashed_daemon_writes_no_core_file(mounted: Mounted) -> None:
    pid = mounted.pid()
    assert pid is not None
    assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] <= 1


def test_no_secret_appears_in_files_xattrs_output_or_proc(tmp_path: Path, home: Home, mounted: Mounted) -> None:
    seen, told = tmp_path / "seen", list[str]()
    with (
        registry_with_passwords(tmp_path) as (private, passwords),
        registry_with_tokens(tmp_path / "second") as (guarded, tokens, signer),
    ):
        push(tmp_path, private, "box", "one")
        push(tmp_path, private, "late", "two")
        push(tmp_path, guarded, "box", "three")
        push(tmp_path, guarded, "late", "four")
        add_program(home, seen, PASSWORD)
        home.docker.parent.mkdir()
        login = {"auth": b64encode(f"{USER}:".encode()).decode(), "identitytoken": "canary-identity"}
        home.docker.write_text(json.dumps({"auths": {guarded.host: login}, "credHelpers": {private.host: "keeper"}}))
        for host in (private.host, guarded.host):
            assert mounted.run("pull", f"{host}/box:1").returncode == 0
            told += [
                mounted.run(*words).stdout for words in (("status", f"{host}/box:1"), ("inspect", f"{host}/box:1"))
            ]
        passwords.set(CHANGED)
        tokens.identities.clear()
        for host in (private.host, guarded.host):
            done = mounted.run("pull", f"{host}/late:1")
            assert done.returncode == 4
            told.append(done.stderr)
        shown = everything_shown(mounted) | {"program": seen.read_bytes(), "told": "\n".join(told).encode()}
        secrets = ["canary", b64encode(f"{USER}:{PASSWORD}".encode()).decode(), *signer.issued]
        secrets += [b64encode(b"canary-identity").decode(), signer.issued[-1].split(".")[1]]
    assert b"docker-credential-keeper" in shown["program"]
    assert b'"host": "' in shown[str(mounted.path / ".imgfs/log")]
    assert any(b"to the login from" in value for value in shown.values())
    leaks = [(where, secret) for where, value in shown.items() for secret in secrets if secret.encode() in value]
    assert leaks == []
