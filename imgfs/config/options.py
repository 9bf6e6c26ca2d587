"""The table of options: name, type, default, bounds and description. Parser, help, manual and tree read it.

Each option is a field of Config. The `description` of its type says what it means.
"""

from __future__ import annotations

import grp
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from imgfs.errors import Invalid
from imgfs.oci.platform import Platform, local_platform, parse_platform

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of the daemon."""

    access: Annotated[
        str,
        Meta(
            description="Who may enter the mount: `root` (and the daemon's user), `group:NAME` or `all`. Readers "
            "pull with the daemon's credentials."
        ),
    ] = "root"
    resolve: Annotated[
        Literal["lookup", "registered"],
        Meta(
            description="`lookup`: looking up an unregistered name asks its registry once. `registered`: only "
            "registered names exist."
        ),
    ] = "lookup"
    platform: Annotated[
        str,
        Meta(
            description="The platform that is chosen from an index: `os/architecture[/variant]`; empty for this host's."
        ),
    ] = ""
    plain_http: Annotated[
        list[str],
        Meta(description="Registry hosts (`host` or `host:port`), besides loopback, that imgfs contacts without TLS."),
    ] = []
    auth_file: Annotated[
        str,
        Meta(
            description="The only file from which registry logins are read, an absolute path; empty for the files of "
            "podman and docker."
        ),
    ] = ""
    hosts_path: Annotated[
        list[str],
        Meta(
            description="Directories with `<host>/hosts.toml` or certificates: mirrors, TLS and headers, as containerd "
            "reads them."
        ),
    ] = msgspec.field(default_factory=lambda: ["/etc/containerd/certs.d", "/etc/docker/certs.d"])
    views: Annotated[
        Literal["kernel", "fuse"],
        Meta(
            description="`kernel`: a rootfs is an EROFS mount if the host allows it. `fuse`: a rootfs is always the "
            "FUSE view, as for ordinary users."
        ),
    ] = "kernel"
    view_idle_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=86400,
            description="Seconds after which an unused rootfs is unmounted; the next use mounts it again.",
        ),
    ] = 300.0
    ingest_idle_seconds: Annotated[
        float,
        Meta(
            ge=60,
            le=10 * 365 * 86400,
            description="Seconds after which an unfinished write without a writer is garbage. Garbage is removed when "
            "space is short.",
        ),
    ] = 7 * 86400.0
    quota_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes on disk that content and layers may take; 0: no limit. Above it, imgfs removes what it "
            "can fetch again; if that is not enough, it refuses writes to content/ingest and imports (ENOSPC).",
        ),
    ] = 0
    free_space_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Bytes of the state directory's disk that imgfs keeps free in the same way; 0: none.",
        ),
    ] = 0
    free_space_percent: Annotated[float, Meta(ge=0, le=95, description="The same, as a percentage of that disk.")] = 0.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The lowest level of events that are logged."),
    ] = "info"
    log_bytes: Annotated[
        int,
        Meta(
            ge=64 << 10,
            description="Largest size of the log in the state directory in bytes. A full log is renamed to `log.1`, "
            "which replaces the previous one.",
        ),
    ] = 16 << 20
    disabled_plugins: Annotated[
        list[str], Meta(description="Plugins (`kind.id`) that are not started; `imgfs plugins` lists all plugins.")
    ] = []
    plugins: Annotated[
        dict[str, dict[str, dict[str, Any]]],
        Meta(description="Options of plugins: one table `[plugins.kind.id]` for each. The plugin defines them."),
    ] = {}

    def __post_init__(self) -> None:
        if self.access not in ("root", "all") and not self.access.startswith("group:"):
            raise ValueError("access: expected root, group:NAME or all")
        if self.auth_file and not self.auth_file.startswith("/"):
            raise ValueError("auth_file: expected an absolute path")
        if not all(path.startswith("/") for path in self.hosts_path):
            raise ValueError("hosts_path: expected absolute paths")

    @property
    def chosen_platform(self) -> Platform:
        """The platform that is chosen from an index. Raises Invalid."""
        return parse_platform(self.platform) if self.platform else local_platform()

    @property
    def is_private(self) -> bool:
        """Whether only the daemon's user and root may enter the mount."""
        return self.access == "root"

    @property
    def root_mode(self) -> int:
        """The permission bits of the mountpoint."""
        return {"root": 0o700, "all": 0o755}.get(self.access, 0o750)

    @property
    def root_group(self) -> int | None:
        """The group that may enter the mount, or None. Raises Invalid if the group does not exist."""
        if not self.access.startswith("group:"):
            return None
        name = self.access.partition(":")[2]
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            raise Invalid(f"access = {self.access!r}: there is no group {name!r}") from None


@dataclass(frozen=True, slots=True)
class Option:
    """One option."""

    name: str
    type: Any
    """The type that its values are converted to, with bounds."""
    default: object
    text: str
    choices: tuple[str, ...]
    """The only permitted values; empty if the type alone decides."""

    @property
    def variable(self) -> str:
        """The environment variable that sets it; empty for tables, which a single string cannot express."""
        return "" if self.is_table else f"IMGFS_{self.name.upper()}"

    @property
    def is_table(self) -> bool:
        """Whether its values are tables."""
        return get_origin(self._plain) is dict

    @property
    def is_list(self) -> bool:
        """Whether its values are lists of strings."""
        return get_origin(self._plain) is list

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self._plain in (int, float)

    @property
    def expected(self) -> str:
        """The permitted values for an error message: `a number from 1 to 86400`."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.is_list:
            return "a list of texts"
        return "tables" if self.is_table else f"{_WORDS.get(self._plain, 'a value')}{self._bounds}"

    @property
    def _plain(self) -> Any:
        return _split(self.type)[0]

    @property
    def _bounds(self) -> str:
        meta = _split(self.type)[1]
        if meta.le is None:
            return "" if meta.ge is None else f" from {_figure(meta.ge)} up"
        return f" up to {_figure(meta.le)}" if meta.ge is None else f" from {_figure(meta.ge)} to {_figure(meta.le)}"


def _figure(number: float) -> str:
    return f"{number:g}" if abs(number) < 10**6 else f"{number:.0f}"


@cache
def table() -> dict[str, Option]:
    """Return all options of the daemon by name, in the order in which help and manual show them."""
    return options_of(Config)


def options_of(struct: type[msgspec.Struct]) -> dict[str, Option]:
    """Return the options that are the fields of `struct`. A plugin's options may lack descriptions and bounds."""
    types = get_type_hints(struct, include_extras=True)
    return {field.name: _option(field, types[field.name]) for field in msgspec.structs.fields(struct)}


def _option(field: msgspec.structs.FieldInfo, annotated: Any) -> Option:
    plain, meta = _split(annotated)
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    choices = get_args(plain) if get_origin(plain) is Literal else ()
    return Option(field.name, annotated, default, meta.description or "", choices)


def _split(annotated: Any) -> tuple[Any, Meta]:
    """Return a type and its metadata."""
    if get_origin(annotated) is not Annotated:
        return annotated, Meta()
    plain, *annotations = get_args(annotated)
    return plain, next((one for one in annotations if isinstance(one, Meta)), Meta())
