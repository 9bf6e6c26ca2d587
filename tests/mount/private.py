"""Real private registries, with passwords or tokens, and the environment of a user that logs in to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.testing.images import File, Image, image, layer
from tests.support.mounted import PATIENCE, Mounted
from tests.support.programs import program
from tests.support.servers import DockerRegistry, docker_registry, skopeo_push
from tests.support.signing import ISSUER, SERVICE, Signer
from tests.support.token_server import TokenServer, token_server

USER, PASSWORD, CHANGED = "user", "canary-password", "canary-changed"
HASHES = {
    PASSWORD: "$2b$04$7fnusgljXGFRJnpqKcJSle6/wWXUmIiuhJf//7uco6ChDMTcRWPse",
    CHANGED: "$2b$04$zd0D6HSmJuLgp/LnYfX95.8Swgdt8zUIyVxDfJxDhj7bX9RCY9a9G",
}
"""The bcrypt hash of each password, as `htpasswd -B` prints it."""


class Home:
    """The environment of a user, which the daemon and the login tools inherit."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.runtime, self.bin = directory / "home", directory / "run", directory / "bin"
        for path in (self.path, self.runtime, self.bin):
            path.mkdir(mode=0o700)
        self.auth = self.runtime / "containers/auth.json"
        self.docker = self.path / ".docker/config.json"
        for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(self.path))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(self.runtime))
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")

    def log_in(self, host: str, password: str = PASSWORD) -> None:
        """Run `skopeo login`, which checks the password at the registry."""
        command = [program("skopeo"), "login", "--tls-verify=false", "--username", USER, "--password-stdin", host]
        done = subprocess.run(
            command, input=password, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd="/"
        )
        assert done.returncode == 0, done.stderr

    def log_out(self, host: str) -> None:
        """Run `skopeo logout`."""
        subprocess.run([program("skopeo"), "logout", host], capture_output=True, check=True, timeout=PATIENCE)


class Passwords:
    """The htpasswd file of a registry with Basic authentication."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "htpasswd"
        self.set(PASSWORD)

    def set(self, password: str) -> None:
        """Set the password of USER. The registry reads the file again at its next request."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{USER}:{HASHES[password]}\n")
        new.rename(self.path)


@contextmanager
def registry_with_passwords(
    directory: Path, redirect: str = "", s3: dict[str, object] | None = None
) -> Generator[tuple[DockerRegistry, Passwords]]:
    """Run a docker-registry that requires Basic authentication. If given, `redirect` or `s3` stores its blobs."""
    passwords = Passwords(directory)
    auth: dict[str, object] = {"htpasswd": {"realm": "private", "path": str(passwords.path)}}
    with docker_registry(directory / "registry", auth, redirect=redirect, s3=s3) as registry:
        yield registry, passwords


@contextmanager
def registry_with_tokens(directory: Path) -> Generator[tuple[DockerRegistry, TokenServer, Signer]]:
    """Run a docker-registry that requires tokens, and its token endpoint. USER also has an identity token."""
    signer = Signer(directory)
    with token_server(signer.issue) as tokens:
        tokens.logins[USER] = PASSWORD
        tokens.identities["canary-identity"] = USER
        tokens.takes_anybody = True
        token = {"realm": tokens.url, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(signer.bundle)}
        with docker_registry(directory / "registry", {"token": token}) as registry:
            yield registry, tokens, signer


def push(directory: Path, registry: DockerRegistry, repository: str, mark: str) -> Image:
    """Push an image with one file, by skopeo with the password of USER, and return the image."""
    built = image([layer([File("mark", f"{mark}\n".encode())])])
    layout = directory / f"layout-{mark}"
    built.write_layout(layout, "1")
    skopeo_push(layout, "1", registry.host, repository, f"{USER}:{PASSWORD}")
    return built


def read(mounted: Mounted, name: str) -> bytes:
    """Return the content of the file in an image that `push` pushed."""
    return (mounted.rootfs(name) / "mark").read_bytes()
