"""Finds the login for a repository that the user's own tools would use."""

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
from imgfs.registry.credentials.authfile import (
    AuthFile,
    Credential,
    Identity,
    Login,
    Signature,
    auth_files,
    canonical_host,
    own_identity,
    parse_auth_file,
    read_auth_file,
    server_keys,
)
from imgfs.registry.credentials.program import ask_program

PROGRAM_SECONDS = 60.0
"""Seconds for which the answer of a credential helper is cached, unless the registry refuses the login."""
TROUBLE_SECONDS = 5.0
"""Seconds for which the failure of a credential helper is cached."""
_log = logging.getLogger("imgfs.registry")

Ask = Callable[[str, str, Mapping[str, str]], Awaitable[Credential | None]]


@dataclass(frozen=True, slots=True)
class _Read:
    """An existing auth file: its name, and its logins or the reason why they cannot be read."""

    name: str
    content: AuthFile
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class _HelperAnswer:
    """The answer of a credential helper, its time (trio's clock), and the time until which it is cached."""

    credential: Credential | None
    trouble: str
    at: float
    until: float


class Credentials:
    """All logins of one user. With `chosen`, only that file is used; else the usual files are searched.

    Each search checks the files, and reads changed ones again. The first file with a login for the repository is used.
    Within a file, `credHelpers` precedes `credsStore`, which precedes `auths`. A host with an entry in `credHelpers`
    uses only that helper. If `credsStore` has no login, `auths` is searched.
    """

    def __init__(self, chosen: Path | None = None, identity: Identity | None = None, ask: Ask = ask_program) -> None:
        self._identity = identity or own_identity()
        self._files = [chosen] if chosen is not None else auth_files(self._identity)
        self._ask = ask
        self._known: dict[Path, tuple[Signature, _Read]] = {}
        self._answers: dict[tuple[str, str], _HelperAnswer] = {}
        self._asking: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def find(self, authority: str, repository: str, *, fresh: bool = False) -> Login:
        """Return the login for `repository` at the registry `authority`. Never raises: access may be anonymous.

        After a refusal, pass `fresh`, so that the helpers are called again instead of using their cached answers. Each
        helper has its own time limit; there is no other. Can be cancelled.
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
        """Return the login in `file`, its source, and reasons why found logins could not be used."""
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
                answer = await self._answer(program, server, since if fresh else None)
            if answer.credential is not None:
                return answer.credential, ""
            trouble = trouble or answer.trouble
        return None, trouble

    async def _answer(self, program: str, server: str, since: float | None) -> _HelperAnswer:
        """Return the cached answer of the helper, or call it. With `since`, older cached answers are not used."""
        answer, now = self._answers.get((program, server)), trio.current_time()
        if answer is not None and now < answer.until and (since is None or answer.at > since):
            return answer
        try:
            credential, trouble = await self._ask(program, server, self._identity.environment), ""
        except AccessDenied as error:
            credential, trouble = None, error.message
        now, kept = trio.current_time(), TROUBLE_SECONDS if trouble else PROGRAM_SECONDS
        answer = self._answers[program, server] = _HelperAnswer(credential, trouble, now, now + kept)
        return answer

    def _read_all(self) -> list[_Read]:
        """Read the files that exist. Blocks."""
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
