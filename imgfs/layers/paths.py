"""Cleans the paths of a layer as a chroot does. The merged tree (tree.py) resolves symbolic links."""

from __future__ import annotations

from imgfs.errors import Malformed

NAME_LIMIT = 255
PATH_LIMIT = 4096
DEPTH_LIMIT = 1024
TARGET_LIMIT = 4095

_UNPLAIN = (b"", b"/", b".")


def clean(name: bytes) -> bytes:
    """Return `name` without leading slashes, `.`, `..` and empty components; b"" is the root.

    `..` at the root stays at the root. Raises Malformed if a component, the path or its depth exceeds its limit.
    """
    name = name.rstrip(b"/")
    if name[:2] == b"./":
        name = name[2:]
    if name[:1] in _UNPLAIN or b"/." in name or b"//" in name:
        name = b"/".join(_components(name))
    if len(name) > NAME_LIMIT:
        _check_lengths(name)
    return name


def check_target(target: bytes) -> None:
    """Raise Malformed if the target of a symbolic link is empty or too long."""
    if not target:
        raise Malformed("symbolic link without a target")
    if len(target) > TARGET_LIMIT:
        raise Malformed(f"symbolic link target of {len(target)} bytes, expected at most {TARGET_LIMIT}")


def _components(name: bytes) -> list[bytes]:
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in _UNPLAIN:
            parts.append(part)
    return parts


def _check_lengths(path: bytes) -> None:
    if len(path) > PATH_LIMIT:
        raise Malformed(f"path of {len(path)} bytes, expected at most {PATH_LIMIT}")
    parts = path.split(b"/")
    if len(parts) > DEPTH_LIMIT:
        raise Malformed(f"path of {len(parts)} components, expected at most {DEPTH_LIMIT}")
    longest = max(map(len, parts))
    if longest > NAME_LIMIT:
        raise Malformed(f"file name of {longest} bytes, expected at most {NAME_LIMIT}")
