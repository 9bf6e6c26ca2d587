"""A user's home with auth files and credential helpers, as login tools write them."""

from __future__ import annotations

import json
import stat
import sys
from base64 import b64encode
from pathlib import Path

from imgfs.registry.credentials.authfile import Identity


class Desk:
    """An identity whose home, runtime directory and PATH are below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.home, self.runtime, self.bin = directory / "home", directory / "run", directory / "bin"
        for path in (self.home, self.runtime, self.bin):
            path.mkdir()
        self.auth = self.runtime / "containers/auth.json"
        self.docker = self.home / ".docker/config.json"
        environment = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.runtime), "PATH": str(self.bin)}
        self.identity = Identity(environment, 4711)

    def write(self, path: Path, **members: object) -> Path:
        """Write an auth file, replacing it as login tools do."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.touch(0o600)
        new.write_text(json.dumps(members))
        return new.rename(path)

    def login(self, path: Path, username: str, password: str = "p", host: str = "r.example") -> Path:
        """Write a file with one login."""
        return self.write(path, auths={host: entry(username, password)})

    def program(self, name: str, body: str) -> Path:
        """Write a credential helper. `body` can use `server`, the requested server. Calls append to `calls`."""
        path = self.bin / f"docker-credential-{name}"
        path.write_text(
            f"#!{sys.executable} -I\nimport json, os, sys\nserver = sys.stdin.read()\n"
            f"open({str(self.bin / 'calls')!r}, 'a').write(f'{{server}}\\n')\n{body}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    @property
    def calls(self) -> list[str]:
        """The servers that the helpers were asked for, in order."""
        path = self.bin / "calls"
        return path.read_text().splitlines() if path.exists() else []


def entry(username: str, password: str) -> dict[str, str]:
    """Return an entry of `auths`."""
    return {"auth": b64encode(f"{username}:{password}".encode()).decode()}


def answer(username: str, secret: str = "s") -> str:
    """Return the body of a helper that always returns this login."""
    return f"print(json.dumps({{'ServerURL': server, 'Username': {username!r}, 'Secret': {secret!r}}}))"


NOT_FOUND = "print('credentials not found in native keychain'); sys.exit(1)"
"""The body of a helper that has no login."""
