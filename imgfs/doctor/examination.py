"""All checks, in order: later checks rely on earlier ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from imgfs.config import Settings
from imgfs.doctor import host, registries, storage
from imgfs.doctor.diagnosis import Diagnosis, fail, ok, warn
from imgfs.errors import ImgfsError
from imgfs.execution.bundle.seccomp import default_profile
from imgfs.execution.plugin import RUNTIME
from imgfs.kernel.probe import probe
from imgfs.plugins.alone import objects_of
from imgfs.plugins.finding import find_plugins
from imgfs.plugins.options import check_names, read_options
from imgfs.plugins.order import ordered
from imgfs.registry.credentials.authfile import own_identity


def examine(state: Path, settings: Settings | ImgfsError, environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Check this host for a daemon of `state` with `settings`, or with the error of reading the settings.

    Writes a few temporary files in the state directory or its parent. Takes a second on a slow disk.
    """
    is_root = os.geteuid() == 0
    yield host.fuse_device()
    yield host.fusermount(is_root=is_root)
    yield host.kernel(os.uname().release)
    yield host.mount_api()
    yield host.capabilities(Path("/proc/self/status").read_text(), is_root=is_root)
    yield host.user_namespaces()
    yield from _storage(state, is_root=is_root)
    yield from _containers(state)
    yield host.clock()
    yield from host.trees()
    yield from host.variables(environment)
    yield from _configured(settings, environment)


def _storage(state: Path, *, is_root: bool) -> Iterator[Diagnosis]:
    place = storage.place_of(state)
    yield storage.directory(state)
    yield storage.filesystem(place)
    yield storage.room(place)
    yield from storage.disk(place)
    yield from storage.times(place)
    try:
        yield from host.views(probe(place), is_root=is_root)
    except ImgfsError as error:
        yield fail("views", error.message, "correct the state directory first")


def _containers(state: Path) -> Iterator[Diagnosis]:
    try:
        programs = list(objects_of(RUNTIME))
    except ImgfsError:
        programs = []  # `_plugins` reports the error
    yield host.runtimes(programs, state)
    yield host.system_calls(default_profile())


def _plugins(settings: Settings) -> Iterator[Diagnosis]:
    """Check that every installed plugin can be imported and accepts its options."""
    config, places = settings.config, settings.origins
    try:
        found = find_plugins(config.disabled_plugins)
        check_names(config.plugins, config.disabled_plugins, [one.name for one in found], places)
        for plugin in ordered(one.plugin for one in found if one.plugin):
            read_options(plugin, config.plugins, places)
    except ImgfsError as error:
        yield fail("plugins", error.message, "correct it; `imgfs man imgfs.toml` explains plugin options")
        return
    failed = [one for one in found if one.failure and one.name not in config.disabled_plugins]
    yield from (warn(f"plugin {one.name}", one.failure, f"repair or uninstall {one.distribution}") for one in failed)
    yield ok("plugins", f"{len(found) - len(failed)} can be loaded or are disabled")


def _configured(settings: Settings | ImgfsError, environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    if isinstance(settings, ImgfsError):
        yield fail("configuration", settings.message, "correct it; `imgfs man imgfs.toml` explains each option")
        config = Settings().config
    else:
        told = sorted(set(settings.origins.values()))
        yield ok(
            "configuration", f"options are set by {', '.join(told)}" if told else "all options have their defaults"
        )
        config = settings.config
        yield from _plugins(settings)
    yield from registries.hosts(config.hosts_path, config.plain_http)
    yield from registries.logins(own_identity(), config.auth_file)
    yield from registries.proxies(environment)
    yield from registries.certificates(environment)
