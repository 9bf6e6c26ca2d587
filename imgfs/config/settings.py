"""The options in force and their origins. The command line wins over the environment, the environment over the file.

Owns reading all three. An error for an unknown name suggests a spelling; an error for a wrong value names its origin.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import msgspec

from imgfs.config.options import Config, Option, table
from imgfs.config.toml import dotted, lines_of, written
from imgfs.errors import ImgfsError, Invalid, NotPermitted
from imgfs.spelling import hint

FILE_NAME = "imgfs.toml"
SIZE_MAX = 64 << 10
"""Largest configuration file, in bytes."""
DEFAULT, COMMAND_LINE = "default", "command line"
NOTHING: Mapping[str, Mapping[str, object]] = MappingProxyType({})
_SHOWN_MAX = 80


@dataclass(frozen=True, slots=True)
class OptionValue:
    """A value and its origin: `default`, `FILE:LINE`, `environment NAME` or `command line`."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """The options in force."""

    config: Config = field(default_factory=Config)
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    """The origins of all values that are not defaults. A plugin's option is `plugins.<kind>.<id>.<key>`."""

    def values(self, plugins: Mapping[str, Mapping[str, object]] = NOTHING) -> dict[str, OptionValue]:
        """Return all options of the daemon and of plugins, by name.

        `plugins` has the options in force of the plugins that could be loaded, by `<kind>.<id>`. For the other plugins
        the result has what the file sets.
        """
        values = {name: getattr(self.config, name) for name, option in table().items() if not option.is_table}
        of_plugins: dict[str, object] = {}
        for kind, ones in self.config.plugins.items():
            for one, options in ones.items():
                of_plugins |= _dotted(kind, one, options)
        for name, options in plugins.items():
            kind, _, one = name.partition(".")
            of_plugins |= _dotted(kind, one, options)
        values |= dict(sorted(of_plugins.items()))
        return {name: OptionValue(value, self._origin(name)) for name, value in values.items()}

    def _origin(self, name: str) -> str:
        """Return the origin of an option; for a table, the origin of its first key."""
        below = (place for option, place in self.origins.items() if option == name or option.startswith(f"{name}."))
        return next(below, DEFAULT)

    def render(self, plugins: Mapping[str, Mapping[str, object]] = NOTHING) -> str:
        """Return all `values` as TOML. A comment above each option names its origin."""
        return "".join(
            f"# {_on_one_line(one.origin)}\n{name} = {written(one.value)}\n"
            for name, one in self.values(plugins).items()
        )


def _dotted(kind: str, one: str, options: Mapping[str, object]) -> dict[str, object]:
    return {dotted(("plugins", kind, one, key)): value for key, value in options.items()}


def default_state() -> Path:
    """Return the default state directory: $STATE_DIRECTORY, root's /var/lib/imgfs-state, or the user's XDG state home.

    Raises Invalid if the user has no home directory.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/imgfs-state")
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "imgfs"
    try:
        return Path.home() / ".local/state/imgfs"
    except RuntimeError:
        raise Invalid(f"user {os.geteuid()}: has no home directory; name a state directory with --state") from None


def load_settings(
    path: Path | None,
    state: Path,
    environment: Mapping[str, str] | None = None,
    given: Sequence[tuple[str, str]] = (),
) -> Settings:
    """Read the file `path`, or the default file in `state` if it exists, then `environment`, then `given`.

    `given` is the command line and may name a list several times. An empty variable counts as unset. Words of a list
    are separated by blanks. Raises Invalid with the origin, the option and a suggested spelling, and NotPermitted if
    the file may not be read.
    """
    read, origins = _in_file(path, state)
    read |= _in_environment(environment or {})
    read |= _on_command_line(given)
    config = _converted(read)
    origins |= {name: one.origin for name, one in read.items()}
    for name, check in (("platform", lambda: config.chosen_platform), ("access", lambda: config.root_group)):
        try:
            check()
        except ImgfsError as error:
            raise Invalid(f"{origins.get(name, DEFAULT)}: {error.message}") from None
    return Settings(config, origins)


def load_config(path: Path | None, state: Path) -> Config:
    """Return the options that the file alone sets, as `load_settings` does."""
    return load_settings(path, state).config


def unknown(name: str, known: Collection[str]) -> str:
    """Return the error message for a name that is not in `known`."""
    return f"unknown option {name[:_SHOWN_MAX]!r}; {hint(name, known)}"


def parse_settings(text: str) -> dict[str, OptionValue]:
    """Read the output of `Settings.render` back, by the same names."""
    lines, document = text.split("\n"), tomllib.loads(text)
    return {
        dotted(path): OptionValue(_at(document, path), lines[line - 2].removeprefix("# "))
        for path, line in lines_of(text).items()
    }


def _at(value: object, path: Sequence[str]) -> object:
    for key in path:
        value = cast("Mapping[str, object]", value)[key]
    return value


def _in_file(path: Path | None, state: Path) -> tuple[dict[str, OptionValue], dict[str, str]]:
    """Return the options that the file sets, and the places of plugin options."""
    chosen = path or state / FILE_NAME
    text = _read(chosen)
    if text is None:
        if path is None:
            return {}, {}
        raise Invalid(f"{chosen}: no such configuration file")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Invalid(f"{chosen}: {error}") from None
    places = {keys: f"{chosen}:{line}" for keys, line in lines_of(text).items()}
    read = {key: OptionValue(value, _place(places, key, str(chosen))) for key, value in raw.items()}
    for key, one in read.items():
        if key not in table():
            raise Invalid(f"{one.origin}: {unknown(key, table())}")
    return read, {dotted(keys): place for keys, place in places.items() if len(keys) > 1}


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
        if len(data) > SIZE_MAX:
            raise Invalid(f"{path}: has more than {SIZE_MAX} bytes; name the configuration file with --config")
        return data.decode().replace("\r\n", "\n")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: {error}") from None
    except PermissionError as error:
        raise NotPermitted(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from None


def _place(places: Mapping[tuple[str, ...], str], key: str, otherwise: str) -> str:
    """Return the place of the first value below `key`."""
    return next((place for keys, place in places.items() if keys[0] == key), otherwise)


def _in_environment(environment: Mapping[str, str]) -> dict[str, OptionValue]:
    return {
        option.name: OptionValue(_parsed(option, [text]), f"environment {option.variable}")
        for option in table().values()
        if (text := environment.get(option.variable))
    }


def _on_command_line(given: Sequence[tuple[str, str]]) -> dict[str, OptionValue]:
    texts: dict[str, list[str]] = {}
    for name, text in given:
        if name not in table():
            raise Invalid(f"{COMMAND_LINE}: {unknown(name, table())}")
        texts.setdefault(name, []).append(text)
    return {name: OptionValue(_parsed(table()[name], found), COMMAND_LINE) for name, found in texts.items()}


def _parsed(option: Option, texts: Sequence[str]) -> object:
    """Return the value of command-line or environment words. The last word counts; a list takes all words."""
    if option.is_list:
        return [word for text in texts for word in text.split()]
    if option.is_number:
        try:
            return msgspec.json.decode(texts[-1])
        except msgspec.DecodeError:
            return texts[-1]  # not a number: the conversion reports a better error
    return texts[-1]


def _converted(read: Mapping[str, OptionValue]) -> Config:
    values: dict[str, object] = {}
    for name, one in read.items():
        option = table()[name]
        try:
            values[name] = msgspec.convert(one.value, option.type)
        except msgspec.ValidationError:
            got = written(one.value)[:_SHOWN_MAX]
            raise Invalid(f"{one.origin}: {name}: got {got}, expected {option.expected}") from None
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise Invalid(f"{_origin_of(str(error), read)}: {error}") from None


def _origin_of(sentence: str, read: Mapping[str, OptionValue]) -> str:
    """Return the origin of the option that an error message of Config begins with."""
    return read[sentence.partition(":")[0]].origin


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
