"""Which auth files there are, in which order, and reading one of them with an eye on who else can."""

from __future__ import annotations

import logging
import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import Malformed, TooLarge

SIZE_MAX = 1 << 20
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger("imgfs.registry")

Signature = tuple[int, int, int, int]
"""What changes when a file is replaced or rewritten: device, inode, size, time of change in ns."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose logins are used: the daemon's own user's, as that user's tools would find them."""

    environment: Mapping[str, str]
    """With HOME and PATH, which a daemon that init or mount(8) started may not have been given."""
    uid: int

    @property
    def home(self) -> Path:
        """The home directory."""
        return Path(self.environment["HOME"])


def own_identity() -> Identity:
    """The identity of this process. HOME is the user database's where the environment has none, PATH the usual one."""
    given = {"PATH": _SEARCH_PATH, "HOME": _home_of(os.geteuid())}
    return Identity(given | {key: value for key, value in os.environ.items() if value}, os.geteuid())


def _home_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/nonexistent"


def auth_files(identity: Identity) -> list[Path]:
    """The files to look through, first to last, whether they exist or not.

    As containers-auth.json(5) has it: $REGISTRY_AUTH_FILE, else the runtime directory's (which is also looked for
    where login tools put it without XDG_RUNTIME_DIR); then the configuration directory's; then docker's.
    """
    environment, home = identity.environment, identity.home
    named = environment.get("REGISTRY_AUTH_FILE")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{identity.uid}"
    first = [Path(named)] if named else [Path(runtime, "containers"), Path(f"/run/containers/{identity.uid}")]
    configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json")
    files = [*(path if named else path / "auth.json" for path in first), configuration / "auth.json", docker]
    return list(dict.fromkeys(files))


def read_auth_file(path: Path, known: Signature | None) -> tuple[Signature, bytes] | None:
    """The signature and bytes of a file; None when its signature is still `known`.

    Blocking. Raises OSError, Malformed (no regular file) and TooLarge. A file that others can read or write, or that
    is another user's, is used, and the log says so.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Malformed("it is no regular file")
        signature = facts.st_dev, facts.st_ino, facts.st_size, facts.st_ctime_ns
        if signature == known:
            return None
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(SIZE_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > SIZE_MAX:
        raise TooLarge(f"it is larger than {SIZE_MAX} bytes")
    _warn_of_others(path, facts)
    return signature, data


def _warn_of_others(path: Path, facts: os.stat_result) -> None:
    mode = stat.S_IMODE(facts.st_mode)
    said = {"file": os.fsdecode(path), "mode": f"{mode:04o}", "owner": facts.st_uid}
    if facts.st_uid not in {0, os.geteuid()}:
        _log.warning("the auth file belongs to another user, who can change what imgfs logs in with", extra=said)
    if mode & 0o022:
        _log.warning("the auth file can be changed by other users; chmod 600 it", extra=said)
    elif mode & 0o004:
        _log.warning("the auth file can be read by other users; chmod 600 it", extra=said)
