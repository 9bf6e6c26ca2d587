"""What proves to a registry who we are, and where that was found. No representation of it shows a secret."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credential:
    """One login. Any of: a user with a password, an identity token (for the token endpoint), a registry token."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    """A bearer token for the registry itself, which no token endpoint is asked for."""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.has_password or self.identity_token or self.registry_token)

    @property
    def has_password(self) -> bool:
        """Whether Basic can be answered."""
        return bool(self.username and self.password)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return f"Basic {b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


@dataclass(frozen=True, slots=True)
class Login:
    """What a look for a login to `host` brought; without a credential, access is anonymous."""

    host: str
    """As somebody types it who logs in."""
    credential: Credential | None = None
    source: str = ""
    """The file, and the program that it names, if one was asked."""
    consulted: tuple[str, ...] = ()
    """The files there were."""
    troubles: tuple[str, ...] = ()
    """Why something that was found could not be used."""

    def advice(self, act: str = "read it") -> str:
        """What to do about a refusal, in one sentence; `act` is what was refused."""
        renew = f"`skopeo login {self.host}` or `podman login {self.host}`, run as the daemon's user,"
        if self.credential is not None:
            return f"{renew} renews that login, or this account may not {act}"
        told = "; ".join(self.troubles)
        if told:
            return f"it may not exist or need a login, and {told}"
        looked = f"none is in {', '.join(self.consulted)}" if self.consulted else "there is no auth file"
        return f"it may not exist or need a login, and {looked}; {renew} writes one"
