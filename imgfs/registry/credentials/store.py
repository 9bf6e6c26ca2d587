"""The door to logins: for a registry and a repository, the one that the user's own tools would use."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from imgfs.aio.threads import run_disk
from imgfs.errors import AccessDenied, ImgfsError
from imgfs.registry.credentials.authfile import AuthFile, canonical_host, parse_auth_file, server_keys
from imgfs.registry.credentials.credential import Credential, Login
from imgfs.registry.credentials.places import Identity, Signature, auth_files, own_identity, read_auth_file
from imgfs.registry.credentials.program import ask_program

PROGRAM_SECONDS = 60.0
"""How long the answer of a program is believed, unless the registry refuses it."""
TROUBLE_SECONDS = 5.0
"""How long its failure is."""
_log = logging.getLogger("imgfs.registry")

Ask = Callable[[str, str, Mapping[str, str]], Awaitable[Credential | None]]


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that is there: its name, and its logins or what is wrong with it."""

    name: str
    content: AuthFile
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a program said, when (trio's clock), and until when it is believed."""

    credential: Credential | None
    trouble: str
    at: float
    until: float


class Credentials:
    """All logins of one user. With `chosen`, that file is the only one; else the usual ones are looked through.

    Files are looked at whenever a login is wanted and read again when they changed. The first file with a login for
    the repository counts; within one, `credHelpers` goes before `credsStore` before `auths`. A helper of `credHelpers`
    is the only one asked for its host; a store that has no login leaves it to `auths`.
    """

    def __init__(self, chosen: Path | None = None, identity: Identity | None = None, ask: Ask = ask_program) -> None:
        self._identity = identity or own_identity()
        self._files = [chosen] if chosen is not None else auth_files(self._identity)
        self._ask = ask
        self._known: dict[Path, tuple[Signature, _Read]] = {}
        self._told: dict[tuple[str, str], _Told] = {}
        self._asking: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def find(self, authority: str, repository: str, *, fresh: bool = False) -> Login:
        """The login for `repository` at the registry `authority`; never fails, as access may be anonymous.

        `fresh` asks programs again whose last answer is still believed: for after a refusal. Takes as long as the
        slowest program, within its bound; cancellation ends it.
        """
        host = canonical_host(authority)
        files, troubles = await run_disk(self._read_all), list[str]()
        names = tuple(file.name for file in files)
        for file in files:
            troubles += [f"{file.name}: {file.trouble}"] if file.trouble else []
            credential, source, trouble = await self._in_file(file, host, repository, fresh=fresh)
            if credential is not None:
                return Login(host, credential, source, names, tuple(troubles))
            troubles += [f"{file.name}: {one}" for one in trouble]
        for trouble in troubles:
            _log.warning("a login could not be read", extra={"host": host, "reason": trouble})
        return Login(host, None, "", names, tuple(troubles))

    async def _in_file(
        self, file: _Read, host: str, repository: str, *, fresh: bool
    ) -> tuple[Credential | None, str, list[str]]:
        """The login in `file`, where it came from, and what went wrong on the way."""
        helper, troubles = file.content.helpers.get(host, ""), list[str]()
        if program := helper or file.content.store:
            credential, trouble = await self._from_program(program, host, fresh=fresh)
            if credential is not None:
                return credential, f"docker-credential-{program} ({file.name})", []
            troubles += [trouble] if trouble else []
        if not helper:
            for entry in file.content.entries_for(host, repository):
                if entry.credential is not None:
                    return entry.credential, file.name, []
                troubles += [entry.trouble] if entry.trouble else []
        return None, "", troubles

    async def _from_program(self, program: str, host: str, *, fresh: bool) -> tuple[Credential | None, str]:
        since = trio.current_time()
        trouble = ""
        for server in server_keys(host):
            async with self._asking[program]:
                told = await self._answer(program, server, since if fresh else None)
            if told.credential is not None:
                return told.credential, ""
            trouble = trouble or told.trouble
        return None, trouble

    async def _answer(self, program: str, server: str, since: float | None) -> _Told:
        """What was said last, if it is to be believed; after a refusal only what was said from `since` on."""
        told, now = self._told.get((program, server)), trio.current_time()
        if told is not None and now < told.until and (since is None or told.at > since):
            return told
        try:
            credential, trouble = await self._ask(program, server, self._identity.environment), ""
        except AccessDenied as error:
            credential, trouble = None, error.message
        now, kept = trio.current_time(), TROUBLE_SECONDS if trouble else PROGRAM_SECONDS
        told = self._told[program, server] = _Told(credential, trouble, now, now + kept)
        return told

    def _read_all(self) -> list[_Read]:
        """The files that are there, in a thread."""
        return [read for path in self._files if (read := self._read(path)) is not None]

    def _read(self, path: Path) -> _Read | None:
        name = os.fsdecode(path).encode(errors="replace").decode()
        signature, kept = self._known.get(path, (None, None))
        try:
            changed = read_auth_file(path, signature)
            if changed is None:
                return kept
            read = _Read(name, parse_auth_file(changed[1]))
        except (FileNotFoundError, NotADirectoryError):
            self._known.pop(path, None)
            return None
        except OSError as error:
            return _Read(name, AuthFile(), f"cannot be read ({error.strerror})")
        except ImgfsError as error:
            return _Read(name, AuthFile(), error.message)
        self._known[path] = changed[0], read
        return read
