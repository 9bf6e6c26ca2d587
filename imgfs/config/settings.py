"""The options in force, and where each is from: a default, a line of the file, the environment, the command line.

Each of these goes before the one named before it. Unknown names are refused with the likely spelling, wrong values with
the place where they stand.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import msgspec

from imgfs.config.lines import lines_of
from imgfs.config.options import Config, Option, table
from imgfs.config.places import FILE_NAME
from imgfs.config.toml import dotted, written
from imgfs.errors import ImgfsError, Invalid, NotPermitted
from imgfs.spelling import hint

SIZE_MAX = 64 << 10
"""Bytes of a file."""
DEFAULT, COMMAND_LINE = "default", "command line"
NOTHING: Mapping[str, Mapping[str, object]] = MappingProxyType({})
_SHOWN_MAX = 80


@dataclass(frozen=True, slots=True)
class Said:
    """A value and where it is from: `default`, `FILE:LINE`, `environment NAME` or `command line`."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """The options in force."""

    config: Config = field(default_factory=Config)
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where what is no default is from. Options of plugins are told apart: `plugins.<kind>.<id>.<key>`."""

    def said(self, plugins: Mapping[str, Mapping[str, object]] = NOTHING) -> dict[str, Said]:
        """Every option of the daemon by its name, and those of plugins.

        `plugins` has what is in force of those that could be asked, by `<kind>.<id>`; of the others there is what the
        file sets.
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
        return {name: Said(value, self._origin(name)) for name, value in values.items()}

    def _origin(self, name: str) -> str:
        """Where an option is from; one that is a table, where its first key stands."""
        below = (place for option, place in self.origins.items() if option == name or option.startswith(f"{name}."))
        return next(below, DEFAULT)

    def render(self, plugins: Mapping[str, Mapping[str, object]] = NOTHING) -> str:
        """What is `said`, as TOML, each below a comment that says where it is from."""
        return "".join(
            f"# {_on_one_line(one.origin)}\n{name} = {written(one.value)}\n" for name, one in self.said(plugins).items()
        )


def _dotted(kind: str, one: str, options: Mapping[str, object]) -> dict[str, object]:
    return {dotted(("plugins", kind, one, key)): value for key, value in options.items()}


def load_settings(
    path: Path | None,
    state: Path,
    environment: Mapping[str, str] | None = None,
    given: Sequence[tuple[str, str]] = (),
) -> Settings:
    """What `path` says, or the file in `state` if there is one; then `environment`, then `given` on the command line.

    A variable that is empty says nothing. Lists are words with blanks between them, and `given` may name one several
    times. Raises Invalid, naming place, option and the likely spelling, and NotPermitted for a file that may not be
    read.
    """
    said, origins = _in_file(path, state)
    said |= _in_environment(environment or {})
    said |= _on_command_line(given)
    config = _converted(said)
    origins |= {name: one.origin for name, one in said.items()}
    for name, check in (("platform", lambda: config.chosen_platform), ("access", lambda: config.root_group)):
        try:
            check()
        except ImgfsError as error:
            raise Invalid(f"{origins.get(name, DEFAULT)}: {error.message}") from None
    return Settings(config, origins)


def load_config(path: Path | None, state: Path) -> Config:
    """What the file alone says; see load_settings."""
    return load_settings(path, state).config


def unknown(name: str, known: Collection[str]) -> str:
    """The sentence for a name that is none of `known`."""
    return f"unknown option {name[:_SHOWN_MAX]!r}; {hint(name, known)}"


def parse_settings(text: str) -> dict[str, Said]:
    """What `Settings.render` wrote, by the same names."""
    lines, document = text.split("\n"), tomllib.loads(text)
    return {
        dotted(path): Said(_at(document, path), lines[line - 2].removeprefix("# "))
        for path, line in lines_of(text).items()
    }


def _at(value: object, path: Sequence[str]) -> object:
    for key in path:
        value = cast("Mapping[str, object]", value)[key]
    return value


def _in_file(path: Path | None, state: Path) -> tuple[dict[str, Said], dict[str, str]]:
    """What the file says, and where its options of plugins stand."""
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
    said = {key: Said(value, _place(places, key, str(chosen))) for key, value in raw.items()}
    for key, one in said.items():
        if key not in table():
            raise Invalid(f"{one.origin}: {unknown(key, table())}")
    return said, {dotted(keys): place for keys, place in places.items() if len(keys) > 1}


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
    """Where the first value below `key` stands."""
    return next((place for keys, place in places.items() if keys[0] == key), otherwise)


def _in_environment(environment: Mapping[str, str]) -> dict[str, Said]:
    return {
        option.name: Said(_parsed(option, [text]), f"environment {option.variable}")
        for option in table().values()
        if (text := environment.get(option.variable))
    }


def _on_command_line(given: Sequence[tuple[str, str]]) -> dict[str, Said]:
    texts: dict[str, list[str]] = {}
    for name, text in given:
        if name not in table():
            raise Invalid(f"{COMMAND_LINE}: {unknown(name, table())}")
        texts.setdefault(name, []).append(text)
    return {name: Said(_parsed(table()[name], found), COMMAND_LINE) for name, found in texts.items()}


def _parsed(option: Option, texts: Sequence[str]) -> object:
    """What words mean; the last one counts, but lists take them all."""
    if option.is_list:
        return [word for text in texts for word in text.split()]
    if option.is_number:
        try:
            return msgspec.json.decode(texts[-1])
        except msgspec.DecodeError:
            return texts[-1]  # no number, which the conversion says better
    return texts[-1]


def _converted(said: Mapping[str, Said]) -> Config:
    values: dict[str, object] = {}
    for name, one in said.items():
        option = table()[name]
        try:
            values[name] = msgspec.convert(one.value, option.type)
        except msgspec.ValidationError:
            got = written(one.value)[:_SHOWN_MAX]
            raise Invalid(f"{one.origin}: {name}: got {got}, expected {option.expected}") from None
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise Invalid(f"{_origin_of(str(error), said)}: {error}") from None


def _origin_of(sentence: str, said: Mapping[str, Said]) -> str:
    """Where the option stands that a sentence of Config begins with."""
    return said[sentence.partition(":")[0]].origin


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
