"""The kind of plugin that this room requires, and its built-in plugin.

The built-in plugin reaches all registries, as this machine is configured, with the logins of the daemon's own user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from imgfs.plugins.contract import Context, Kind, Plugin
from imgfs.plugins.program import CONFIG, DATABASE
from imgfs.registry.client import Registry
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.http.resolver import NameResolver
from imgfs.registry.limits import Limits

REGISTRY = Kind("registry", Registry)


_DEFAULT = Limits()


class Options(msgspec.Struct, frozen=True):
    """How long imgfs waits for registries. The bounds keep every call without progress below two minutes."""

    connect_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=30,
            description="Limit for making a connection, TLS included; `dial_timeout` of hosts.toml replaces it.",
        ),
    ] = _DEFAULT.connect
    silence_seconds: Annotated[
        float,
        Meta(ge=0.1, le=60, description="Longest wait for the first byte of an answer, and between any two bytes."),
    ] = _DEFAULT.silence
    slow_seconds: Annotated[
        float, Meta(ge=0.5, le=60, description="Less than 1000 bytes a second over this time is a stall.")
    ] = _DEFAULT.slow_window
    taking_seconds: Annotated[
        float, Meta(ge=0.1, le=75, description="Longest wait for the answer to a push, after its last byte.")
    ] = _DEFAULT.taking
    pause_seconds: Annotated[float, Meta(ge=0, le=60, description="The longest Retry-After that imgfs obeys.")] = (
        _DEFAULT.pause
    )
    call_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=115,
            description="Longest time without progress, over everything that one request of a reader needs.",
        ),
    ] = _DEFAULT.call
    tries: Annotated[int, Meta(ge=1, le=10, description="Failed attempts in a row without progress.")] = _DEFAULT.tries

    def limits(self) -> Limits:
        """Return these options as limits of the client."""
        return Limits(
            tries=self.tries,
            connect=self.connect_seconds,
            silence=self.silence_seconds,
            slow_window=self.slow_seconds,
            patience=max(0.0, self.call_seconds - self.connect_seconds - self.silence_seconds),
            pause=self.pause_seconds,
            taking=self.taking_seconds,
        )


def _registry(context: Context) -> Registry:
    trio.socket.set_custom_hostname_resolver(NameResolver())
    config, options = context.one(CONFIG), context.options(Options)
    credentials = Credentials(Path(config.auth_file) if config.auth_file else None)
    return Registry(
        limits=options.limits(),
        plain_http=config.plain_http,
        hosts_path=config.hosts_path,
        credentials=credentials,
        database=context.one(DATABASE),
    )


HTTP = Plugin(REGISTRY, "http", _registry, requires=(CONFIG, DATABASE), options=Options)
