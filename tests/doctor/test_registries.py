"""Checks of the registry configuration: problems are named, and no secret is printed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from imgfs.doctor import registries
from imgfs.doctor.diagnosis import Diagnosis
from imgfs.registry.credentials.authfile import Identity

SECRET = "c4n4ry"


def hosts(root: Path, name: str, text: str) -> list[Diagnosis]:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "hosts.toml").write_text(text)
    return list(registries.hosts([str(root), str(root / "gone")]))


def identity(home: Path) -> Identity:
    return Identity({"HOME": str(home), "PATH": str(home / "bin")}, 4242)


def login(home: Path, document: object) -> Path:
    path = home / ".docker/config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def test_hosts_that_can_be_read_are_counted(tmp_path: Path) -> None:
    (told,) = hosts(tmp_path, "_default", 'server = "https://registry.example"\n')
    assert (told.grade, told.what.partition(" in ")[0]) == ("ok", "1 registries are configured")


@pytest.mark.parametrize(
    ("text", "grade", "said"),
    [
        ("server = ", "warn", "is no TOML"),
        ("[host.'https://m.example']\ncapabilities = ['fly']", "warn", "expected one of"),
        ("servr = 'https://m.example'", "warn", "unknown key 'servr' is ignored"),
        ("ca = 'missing.pem'", "warn", "missing.pem"),
    ],
)
def test_errors_in_hosts_toml_are_reported_with_its_path(tmp_path: Path, text: str, grade: str, said: str) -> None:
    told = hosts(tmp_path, "registry.example_5000_", text)
    assert [one.grade for one in told] == [grade, "ok"]
    assert told[0].subject == str(tmp_path / "registry.example_5000_/hosts.toml")
    assert said in told[0].what
    assert told[0].cure


def test_no_login_is_ok(tmp_path: Path) -> None:
    (told,) = registries.logins(identity(tmp_path))
    assert told.grade == "ok"
    (told,) = registries.logins(identity(tmp_path), str(tmp_path / "gone.json"))
    assert told.grade == "warn"


def test_logins_are_counted_and_not_shown(tmp_path: Path) -> None:
    auth = base64.b64encode(f"joe:{SECRET}".encode()).decode()
    path = login(tmp_path, {"auths": {"r.example": {"auth": auth}, "bad.example": {"auth": SECRET}}, "credsStore": "x"})
    told = list(registries.logins(identity(tmp_path)))
    assert [(one.subject, one.grade) for one in told] == [(str(path), "warn"), (str(path), "warn"), (str(path), "ok")]
    assert "bad.example" in told[0].what
    assert "docker-credential-x" in told[1].what
    assert SECRET not in str(told)
    path.chmod(0o644)
    assert next(registries.logins(identity(tmp_path))).cure == f"`chmod 600 {path}`"


def test_a_malformed_auth_file_is_reported(tmp_path: Path) -> None:
    path = login(tmp_path, [SECRET])
    (told,) = registries.logins(identity(tmp_path))
    assert (told.subject, told.grade) == (str(path), "warn")
    assert SECRET not in str(told)


def test_proxies_are_shown_without_user_and_password() -> None:
    environment = {
        "HTTPS_PROXY": f"http://joe:{SECRET}@proxy.example:3128",
        "http_proxy": "ftp://x",
        "ALL_PROXY": "p:1",
    }
    told = {one.subject: (one.grade, one.what) for one in registries.proxies(environment)}
    assert told["$HTTPS_PROXY"] == ("ok", "requests use the proxy proxy.example:3128")
    assert told["$http_proxy"][0] == "warn"
    assert told["$ALL_PROXY"] == ("ok", "requests use the proxy p:1")
    assert SECRET not in str(told)


def test_missing_certificates_are_reported(tmp_path: Path) -> None:
    environment = {"SSL_CERT_FILE": str(tmp_path / "gone"), "SSL_CERT_DIR": f"{tmp_path}:{tmp_path}/gone"}
    assert [one.grade for one in registries.certificates(environment)] == ["warn", "ok", "warn"]
