"""All registries, reached as this machine is configured to, with the logins of the daemon's own user."""

from __future__ import annotations

from pathlib import Path

from imgfs.plugins.contract import Context, Plugin
from imgfs.plugins.program import CONFIG
from imgfs.registry.client import Registry
from imgfs.registry.credentials.store import Credentials
from imgfs.registry.kinds import REGISTRY


def _registry(context: Context) -> Registry:
    config = context.one(CONFIG)
    credentials = Credentials(Path(config.auth_file) if config.auth_file else None)
    return Registry(plain_http=config.plain_http, hosts_path=config.hosts_path, credentials=credentials)


HTTP = Plugin(REGISTRY, "http", _registry, requires=(CONFIG,))
