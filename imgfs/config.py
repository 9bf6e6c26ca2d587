"""The configuration: every option once, with its default and what it means. Unknown keys are refused with a suggestion.

Read from `--config FILE`, else `imgfs.toml` in the state directory, else all defaults.
"""

from __future__ import annotations

import difflib
import grp
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from imgfs.errors import Invalid, NotPermitted
from imgfs.oci.platform import Platform, local_platform, parse_platform

DEFAULT_MOUNTPOINT = "/var/lib/imgfs"
FILE_NAME = "imgfs.toml"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the daemon."""

    access: str = "root"
    """Who gets in: `root` (and the daemon's user), `group:NAME`, `all`. Readers pull with the daemon's credentials."""
    resolve: Literal["lookup", "registered"] = "lookup"
    """`lookup`: an unregistered name is asked for at its registry once. `registered`: only registered names exist."""
    platform: str = ""
    """What an index is read for: `os/architecture[/variant]`; empty for this machine's."""
    plain_http: list[str] = []
    """Registry hosts (`host` or `host:port`) besides loopback that are spoken to without TLS."""
    auth_file: str = ""
    """The only file that logins to registries are read from, an absolute path; empty for those of podman and docker."""
    hosts_path: list[str] = msgspec.field(default_factory=lambda: ["/etc/containerd/certs.d", "/etc/docker/certs.d"])
    """Directories with `<host>/hosts.toml` or certificates: mirrors, TLS and headers, as containerd reads them."""
    views: Literal["kernel", "fuse"] = "kernel"
    """`kernel`: a rootfs is an EROFS mount where that is possible. `fuse`: always the FUSE view, as for users."""
    view_idle_seconds: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0
    """How long a mounted rootfs may be unused before it is unmounted; the next use mounts it again."""
    ingest_idle_seconds: Annotated[float, msgspec.Meta(ge=60, le=10 * 365 * 86400)] = 7 * 86400.0
    """How long an unfinished write may lie without a writer before it is garbage, which goes when room is short."""
    quota_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """What content and layers may take on disk; 0: as much as there is. Above it, what can be fetched again goes."""
    free_space_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How much of the state directory's disk is kept free in the same way; 0: nothing."""
    free_space_percent: Annotated[float, msgspec.Meta(ge=0, le=95)] = 0.0
    """The same as a share of that disk."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    disabled_plugins: list[str] = []
    """Plugins (`kind.id`) that are not started; `imgfs plugins` lists all."""
    plugins: dict[str, dict[str, dict[str, Any]]] = {}
    """Options of plugins: a table `[plugins.kind.id]` for each. The plugin says which there are."""

    def __post_init__(self) -> None:
        if self.access not in ("root", "all") and not self.access.startswith("group:"):
            raise ValueError("access: expected root, group:NAME or all")
        if self.auth_file and not self.auth_file.startswith("/"):
            raise ValueError("auth_file: expected an absolute path")
        if not all(path.startswith("/") for path in self.hosts_path):
            raise ValueError("hosts_path: expected absolute paths")

    @property
    def chosen_platform(self) -> Platform:
        """The platform to read indexes for. Raises Invalid."""
        return parse_platform(self.platform) if self.platform else local_platform()

    @property
    def is_private(self) -> bool:
        """Whether only the daemon's user (and root) may enter the mount."""
        return self.access == "root"

    @property
    def root_mode(self) -> int:
        """Permission bits of the mountpoint."""
        return {"root": 0o700, "all": 0o755}.get(self.access, 0o750)

    @property
    def root_group(self) -> int | None:
        """The group that may enter, if it is one. Raises Invalid where there is no such group."""
        if not self.access.startswith("group:"):
            return None
        name = self.access.partition(":")[2]
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            raise Invalid(f"access = {self.access!r}: there is no group {name!r}") from None

    def render(self) -> str:
        """The options of the daemon in force, as TOML; those of plugins are in `.imgfs/plugins/`."""
        lines: list[str] = []
        for field in msgspec.structs.fields(Config):
            if field.name != "plugins":
                lines.append(f"{field.name} = {msgspec.json.encode(getattr(self, field.name)).decode()}")
        return "\n".join(lines) + "\n"


def load_config(path: Path | None, state: Path) -> Config:
    """Read `path`, or the file in `state` if there is one.

    Raises Invalid, naming file, key and the likely spelling, and NotPermitted for a file that may not be read.
    """
    chosen = path or state / FILE_NAME
    try:
        raw = tomllib.loads(chosen.read_text())
    except FileNotFoundError:
        if path is None:
            return Config()
        raise Invalid(f"{chosen}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{chosen}: {error}") from None
    except PermissionError as error:
        raise NotPermitted(f"{chosen}: {error.strerror}") from None
    except OSError as error:
        raise Invalid(f"{chosen}: {error.strerror}") from None
    _refuse_unknown(chosen, raw)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise Invalid(f"{chosen}: {error}") from None
    _ = config.chosen_platform, config.root_group
    return config


def default_state() -> Path:
    """Where state lies unless --state says: $STATE_DIRECTORY, root's /var/lib/imgfs-state, a user's XDG state home.

    Raises Invalid where the user has none.
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


def _refuse_unknown(path: Path, raw: dict[str, object]) -> None:
    known = [field.name for field in msgspec.structs.fields(Config)]
    for key in raw:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise Invalid(f"{path}: unknown option {key!r}; {hint}")
