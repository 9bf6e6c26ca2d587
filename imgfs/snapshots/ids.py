"""Ids in snapshots/: chain IDs, names a user chose, and `active/<key>`. Checks which keys and names are allowed."""

from __future__ import annotations

import re

from imgfs.errors import Invalid
from imgfs.filename import check_file_name, is_dashed_digest, with_colons
from imgfs.oci.digest import HEX_LENGTH

ACTIVE = "active"
"""The directory of active snapshots, below snapshots/."""

_DIGEST_LIKE = re.compile(rf"((?:{'|'.join(HEX_LENGTH)}):.*|[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-f]{{32,}}(?:@.*)?)\Z")
"""Chain IDs, `<image digest>@<platform>`, and names that look like digests of other algorithms."""


def active_id(key: str) -> str:
    """Return the id of the active snapshot with that key, which is its path below snapshots/."""
    return f"{ACTIVE}/{key}"


def ids_of_target(target: str, *base: str) -> list[str]:
    """Return the ids that the target of a symbolic link in `base`, below snapshots/, may mean, the likeliest first.

    A path is resolved from `base`. A path that leaves snapshots/ means its last component. Nothing is looked up.
    """
    *above, last = target.rstrip("/").split("/")
    if not above:
        return [last]
    here = list(base)
    for part in (*above, last):
        if part == "..":
            here = here[:-1]
        elif part not in ("", "."):
            here.append(part)
    followed = active_id(last) if here[-2:-1] == [ACTIVE] else last
    return [followed] if above[-1] == ACTIVE else list(dict.fromkeys((followed, last)))


def subject(id: str) -> str:
    """Return the start of a message about the snapshot. It is valid text for every id."""
    return f"snapshot {shown(id)}"


def shown(id: str) -> str:
    """Return the id, with escapes for bytes that are no text."""
    return id.encode(errors="backslashreplace").decode()


def check_key(key: str) -> None:
    """Raise Invalid unless an active snapshot may have this key: one file name of 1 to 255 bytes.

    `sha256-<hex>` is the colon-free spelling of another key.
    """
    check_file_name(key, "snapshot key")
    if is_dashed_digest(key):
        raise Invalid(f"snapshot key {key[:140]!r}: is the colon-free spelling of a digest; choose another")


def check_name(name: str) -> None:
    """Raise Invalid unless a committed snapshot or a view may have this name: as a key, but no digest and not `active`.

    Digests name the snapshots of images, whose content they promise.
    """
    check_file_name(name, "snapshot name")
    if name == ACTIVE:
        raise Invalid(f"snapshot name {name!r}: is the directory of active snapshots; choose another")
    if _DIGEST_LIKE.match(with_colons(name)):
        raise Invalid(f"snapshot name {name[:140]!r}: digests name the snapshots of images; choose a word")
